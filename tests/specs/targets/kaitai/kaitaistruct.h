// Part of a small stand-in for the C++ runtime of Kaitai Struct; see kaitaistream.h.
#ifndef KAITAI_STRUCT_H
#define KAITAI_STRUCT_H

#include "kaitai/kaitaistream.h"

#define KAITAI_STRUCT_VERSION 11000L

namespace kaitai {

class kstruct {
public:
    explicit kstruct(kstream* io) : m__io(io) {}
    virtual ~kstruct() {}
    kstream* _io() const { return m__io; }

protected:
    kstream* m__io;
};

}  // namespace kaitai

#endif
