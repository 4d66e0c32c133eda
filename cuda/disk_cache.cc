#include "disk_cache.h"

#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "settings.h"
#include "status.h"

namespace jax_qconv {
namespace {

std::filesystem::path PathOf(const std::string& kind, const std::string& key) {
  return std::filesystem::path(GetSettings().cache_dir) / kind / HexHash(key);
}

}  // namespace

std::string HexHash(const std::string& text) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (unsigned char c : text) hash = (hash ^ c) * 0x100000001b3u;
  char hex[17];
  std::snprintf(hex, sizeof(hex), "%016llx", static_cast<unsigned long long>(hash));
  return hex;
}

std::optional<std::string> ReadCache(const std::string& kind, const std::string& key) {
  std::ifstream file(PathOf(kind, key), std::ios::binary);
  if (!file) return std::nullopt;
  const std::string content((std::istreambuf_iterator<char>(file)), {});
  // key, newline, hash of the value (a file cut short is not taken), newline, value
  const std::string head = key + "\n";
  const size_t body = head.size() + 17;
  if (content.size() < body || content.compare(0, head.size(), head) != 0) return std::nullopt;
  std::string value = content.substr(body);
  if (content.compare(head.size(), 16, HexHash(value)) != 0) return std::nullopt;
  return value;
}

bool WriteCache(const std::string& kind, const std::string& key, const std::string& value) {
  static std::atomic<int> counter{0};
  const std::filesystem::path path = PathOf(kind, key);
  std::filesystem::path temporary = path;
  temporary += StrCat(".", getpid(), ".", counter++);
  std::error_code ignored;
  std::filesystem::create_directories(path.parent_path(), ignored);
  {
    std::ofstream file(temporary, std::ios::binary);
    file << key << "\n" << HexHash(value) << "\n" << value;
    if (!file.flush()) {
      std::filesystem::remove(temporary, ignored);
      return false;
    }
  }
  std::error_code error;
  std::filesystem::rename(temporary, path, error);
  if (error) std::filesystem::remove(temporary, ignored);
  return !error;
}

void RemoveFromCache(const std::string& kind, const std::string& key) {
  std::error_code ignored;
  std::filesystem::remove(PathOf(kind, key), ignored);
}

}  // namespace jax_qconv
