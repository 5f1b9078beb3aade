/* Types of every shape that serialized structs use. Compiled by gcc -g, turned into BTF by pahole. */
typedef unsigned long u64;

enum mode { MODE_ZERO, MODE_ONE, MODE_MINUS = -1 };

struct nested {
	u64 next;
	u64 count;
};

struct sample {
	union {
		u64 phys;
		struct sample *ptr;
	} first;
	unsigned int total_pages;
	unsigned short flags;
	_Bool ok;
	char name[16];
	unsigned short matrix[2][3];
	enum mode mode;
	union {
		u64 value;
		unsigned int half;
	};
	struct nested nested;
	struct sample *back;
	u64 tail[];
};

struct bits {
	unsigned int ref;
	unsigned int deleted : 1;
	unsigned int incoming : 1;
	unsigned int vasz : 11;
	u64 rest : 52;
};

struct sample_packed {
	unsigned int a;
	u64 b;
	_Bool c;
} __attribute__((packed));

struct sample sample;
struct bits bits;
struct sample_packed packed;
enum mode mode;
