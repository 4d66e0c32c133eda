// Small results that are worth keeping between processes: one file each, named by its key.

#pragma once

#include <optional>
#include <string>

namespace jax_qconv {

// `kind` is the sub-folder ("verdicts", "built", ...). The whole key is stored and compared, so
// that two keys of one hash can't be confused. A file that can't be read, or isn't one of ours,
// counts as absent. Writes are atomic, and tell whether they succeeded; mostly, one that fails is
// only a lost saving.
std::optional<std::string> ReadCache(const std::string& kind, const std::string& key);
bool WriteCache(const std::string& kind, const std::string& key, const std::string& value);
void RemoveFromCache(const std::string& kind, const std::string& key);

// A stable 64-bit hash (FNV-1a) in hexadecimal.
std::string HexHash(const std::string& text);

}  // namespace jax_qconv
