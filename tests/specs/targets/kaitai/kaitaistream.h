// A small stand-in for the C++ runtime of Kaitai Struct, so that the C++ target of the
// specifications can be tested where the runtime (kaitai_struct_cpp_stl_runtime) is not
// installed. It has what the generated parsers call, over a buffer in memory. Users take
// the real runtime; the test does too when KAITAI_CPP_RUNTIME names its directory.
#ifndef KAITAI_STREAM_H
#define KAITAI_STREAM_H

#include <stdint.h>

#include <ios>
#include <stdexcept>
#include <string>

namespace kaitai {

class kstream {
public:
    explicit kstream(const std::string& data) : m_data(data) {}

    bool is_eof() const { return m_bits_left == 0 && m_pos >= m_data.size(); }
    uint64_t pos() const { return m_pos; }
    uint64_t size() const { return m_data.size(); }
    void seek(uint64_t pos) {
        align_to_byte();
        m_pos = pos;
    }

    uint8_t read_u1() { return static_cast<uint8_t>(le(1)); }
    uint16_t read_u2le() { return static_cast<uint16_t>(le(2)); }
    uint32_t read_u4le() { return static_cast<uint32_t>(le(4)); }
    uint64_t read_u8le() { return le(8); }
    int32_t read_s4le() { return static_cast<int32_t>(le(4)); }
    uint16_t read_u2be() { return static_cast<uint16_t>(be(2)); }
    uint32_t read_u4be() { return static_cast<uint32_t>(be(4)); }
    uint64_t read_u8be() { return be(8); }
    int32_t read_s4be() { return static_cast<int32_t>(be(4)); }

    void align_to_byte() {
        m_bits = 0;
        m_bits_left = 0;
    }

    uint64_t read_bits_int_le(int n) {
        uint64_t result = 0;
        for (int i = 0; i < n; i++) {
            if (m_bits_left == 0) {
                m_bits = static_cast<uint8_t>(take(1)[0]);
                m_bits_left = 8;
            }
            result |= static_cast<uint64_t>(m_bits & 1) << i;
            m_bits >>= 1;
            m_bits_left--;
        }
        return result;
    }

    std::string read_bytes(int64_t size) {
        align_to_byte();
        if (size < 0) throw std::runtime_error("negative size");
        return take(static_cast<uint64_t>(size));
    }
    std::string read_bytes_full() {
        align_to_byte();
        return take(m_pos < m_data.size() ? m_data.size() - m_pos : 0);
    }
    std::string read_bytes_term(char terminator, bool include, bool consume, bool eos_error) {
        align_to_byte();
        std::string::size_type at = m_data.find(terminator, m_pos);
        if (at == std::string::npos) {
            if (eos_error) throw std::runtime_error("no terminator");
            return read_bytes_full();
        }
        std::string found = m_data.substr(m_pos, at - m_pos + (include ? 1 : 0));
        m_pos = consume ? at + 1 : at;
        return found;
    }

    static std::string bytes_terminate(const std::string& bytes, char terminator, bool include) {
        std::string::size_type at = bytes.find(terminator);
        if (at == std::string::npos) return bytes;
        return bytes.substr(0, at + (include ? 1 : 0));
    }
    // All strings of the specifications are ASCII.
    static std::string bytes_to_str(const std::string& bytes, const char*) {
        for (std::string::size_type i = 0; i < bytes.size(); i++)
            if (bytes[i] & 0x80) throw std::runtime_error("not ASCII");
        return bytes;
    }
    static int mod(int a, int b) {
        int r = a % b;
        return r < 0 ? r + b : r;
    }

private:
    std::string take(uint64_t size) {
        if (m_pos > m_data.size() || size > m_data.size() - m_pos)
            throw std::runtime_error("end of stream");
        std::string bytes = m_data.substr(m_pos, size);
        m_pos += size;
        return bytes;
    }
    uint64_t le(int size) {
        std::string bytes = read_bytes(size);
        uint64_t value = 0;
        for (int i = size; i-- > 0;) value = value << 8 | static_cast<uint8_t>(bytes[i]);
        return value;
    }
    uint64_t be(int size) {
        std::string bytes = read_bytes(size);
        uint64_t value = 0;
        for (int i = 0; i < size; i++) value = value << 8 | static_cast<uint8_t>(bytes[i]);
        return value;
    }

    std::string m_data;
    uint64_t m_pos = 0;
    uint8_t m_bits = 0;
    int m_bits_left = 0;
};

}  // namespace kaitai

#endif
