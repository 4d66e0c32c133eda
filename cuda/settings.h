// What Python tells the extension once, when the package is imported.

#pragma once

#include <string>
#include <vector>

namespace jax_qconv {

struct Settings {
  std::string cache_dir;                  // where verdicts and cubins are kept
  std::vector<std::string> library_dirs;  // folders of NVIDIA's wheels, searched last
};

// Set before any other function of the extension runs; read-only from then on.
inline Settings& GetSettings() {
  static auto* settings = new Settings;
  return *settings;
}

}  // namespace jax_qconv
