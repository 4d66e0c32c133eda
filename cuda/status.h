// Errors as values: everything that can fail returns Error or ErrorOr<T>; nothing throws,
// exits or prints.

#pragma once

#include <exception>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace jax_qconv {

namespace ffi = ::xla::ffi;
using ffi::Error;
using ffi::ErrorCode;
using ffi::ErrorOr;
using ffi::Unexpected;

// Joins its arguments into one string.
template <typename... Args>
std::string StrCat(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

// The error of a result, or success.
template <typename T>
Error StatusOf(const ErrorOr<T>& result) {
  return result.has_value() ? Error::Success() : result.error();
}

// Puts what was being done in front of the error, keeping its code.
inline Error Annotate(const Error& error, const std::string& context) {
  return Error(error.errc().value_or(ErrorCode::kInternal), StrCat(context, ": ", error.message()));
}

// Runs `body`, which returns Error or ErrorOr<T>, and turns what it may throw (out of memory, no
// more threads, another library's exception) into an Error.
template <typename Body>
auto NoThrow(Body&& body) -> decltype(body()) {
  std::string what;
  try {
    return body();
  } catch (const std::exception& exception) {
    what = exception.what();
  } catch (...) {
    what = "unknown exception";
  }
  Error error = Error::Internal(StrCat("jax_qconv: unexpected failure: ", what));
  if constexpr (std::is_same_v<decltype(body()), Error>) {
    return error;
  } else {
    return Unexpected(std::move(error));
  }
}

}  // namespace jax_qconv

#define JQ_CONCAT_(a, b) a##b
#define JQ_CONCAT(a, b) JQ_CONCAT_(a, b)

// Returns the error of `expr`, if it is one.
#define JQ_RETURN_IF_ERROR(expr)                                                   \
  do {                                                                             \
    if (::jax_qconv::Error jq_error = (expr); jq_error.failure()) return jq_error; \
  } while (false)

// The same inside a function that returns ErrorOr<T>.
#define JQ_RETURN_UNEXPECTED_IF_ERROR(expr)                       \
  do {                                                            \
    if (::jax_qconv::Error jq_error = (expr); jq_error.failure()) \
      return ::jax_qconv::Unexpected(std::move(jq_error));        \
  } while (false)

// `decl = value of expr`, or returns its error. ASSIGN_OR_RETURN is for functions that return
// Error, ASSIGN_OR_UNEXPECTED for those that return ErrorOr<T>.
#define JQ_ASSIGN_OR_RETURN(decl, expr) JQ_ASSIGN_(JQ_CONCAT(jq_result_, __LINE__), decl, expr, )
#define JQ_ASSIGN_OR_UNEXPECTED(decl, expr) \
  JQ_ASSIGN_(JQ_CONCAT(jq_result_, __LINE__), decl, expr, ::jax_qconv::Unexpected)
#define JQ_ASSIGN_(result, decl, expr, wrap)            \
  auto result = (expr);                                 \
  if (!result.has_value()) return wrap(result.error()); \
  decl = std::move(result).value()
