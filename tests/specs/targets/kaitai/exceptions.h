// Part of a small stand-in for the C++ runtime of Kaitai Struct; see kaitaistream.h.
#ifndef KAITAI_EXCEPTIONS_H
#define KAITAI_EXCEPTIONS_H

#include <stdexcept>
#include <string>

#include "kaitai/kaitaistream.h"

namespace kaitai {

class kstruct_error : public std::runtime_error {
public:
    kstruct_error(const std::string& what, const std::string& path)
        : std::runtime_error(path + ": " + what) {}
};

template <typename T>
class validation_failed_error : public kstruct_error {
public:
    validation_failed_error(const std::string& what, const std::string& path)
        : kstruct_error("validation failed: " + what, path) {}
};

template <typename T>
class validation_not_equal_error : public validation_failed_error<T> {
public:
    validation_not_equal_error(const T&, const T&, kstream*, const std::string& path)
        : validation_failed_error<T>("not equal", path) {}
};

template <typename T>
class validation_less_than_error : public validation_failed_error<T> {
public:
    validation_less_than_error(const T&, const T&, kstream*, const std::string& path)
        : validation_failed_error<T>("too small", path) {}
};

template <typename T>
class validation_greater_than_error : public validation_failed_error<T> {
public:
    validation_greater_than_error(const T&, const T&, kstream*, const std::string& path)
        : validation_failed_error<T>("too large", path) {}
};

template <typename T>
class validation_not_any_of_error : public validation_failed_error<T> {
public:
    validation_not_any_of_error(const T&, kstream*, const std::string& path)
        : validation_failed_error<T>("not any of the list", path) {}
};

template <typename T>
class validation_expr_error : public validation_failed_error<T> {
public:
    validation_expr_error(const T&, kstream*, const std::string& path)
        : validation_failed_error<T>("not what the expression asks", path) {}
};

}  // namespace kaitai

#endif
