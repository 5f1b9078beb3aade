meta:
  id: c_string
  title: Fixed-size C character array
  license: MIT
  ks-version: 0.11
doc: |
  A `char name[N]` member. Use it with an explicit `size`, so that it gets a
  stream of its own:

      - id: name
        type: c_string
        size: 64

  Names in an image are bytes that the producer's user space chose; no
  encoding is promised, and a hostile image may hold anything. Both views are
  therefore byte arrays; decode them (for display, and with control characters
  escaped) in the application.
seq:
  - id: text
    terminator: 0
    eos-error: false
    doc: The bytes before the first NUL, or all of them if there is none.
instances:
  raw:
    pos: 0
    size-eos: true
    doc: The whole array, with whatever follows the NUL.
  is_terminated:
    value: text.length < _io.size
    doc: The kernel refuses names that fill the array without a NUL.
