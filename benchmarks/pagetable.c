/*
 * Baseline of the page-table benchmark: a plain recursive walk over VT-d second-stage
 * tables that streams merged ranges out, the translation of single addresses, and the
 * printing of ranges with fprintf.
 */
#include <stdint.h>
#include <stdio.h>

#define BUFFERED 1024

struct range {
	uint64_t iova, pa, size, rights;
};

struct walk;
typedef void (*emit_fn)(struct walk *w, const struct range *r);

struct walk {
	emit_fn emit; /* called with each range */
	const uint64_t *words; /* physical memory from address 0 */
	uint64_t bytes;
	uint64_t entries, tables, leaves, bad, ranges, checksum;
	struct range now;
	FILE *text;
	struct range buffer[BUFFERED];
};

uint64_t pagetable_walk_size(void)
{
	return sizeof(struct walk);
}

static void keep(struct walk *w, const struct range *r)
{
	w->buffer[w->ranges++ % BUFFERED] = *r;
}

static void hash(struct walk *w, const struct range *r)
{
	w->ranges++;
	w->checksum += ((r->iova * 0x9e3779b97f4a7c15 ^ r->pa * 0xc2b2ae3d27d4eb4f) + r->size) *
			       0x165667b19e3779f9 + r->rights;
}

static void print(struct walk *w, const struct range *r)
{
	w->ranges++;
	fprintf(w->text, "0x%lx 0x%lx 0x%lx %c%c%c\n", r->iova, r->pa, r->size,
		r->rights & 1 ? 'r' : '-', r->rights & 2 ? 'w' : '-', r->rights & 4 ? 'x' : '-');
}

static void flush(struct walk *w)
{
	if (w->now.size)
		w->emit(w, &w->now);
	w->now.size = 0;
}

static void table(struct walk *w, uint64_t pa, int level, uint64_t iova)
{
	const uint64_t *t = w->words + pa / 8;
	const int shift = 12 + 9 * level;
	const uint64_t size = 1ull << shift;

	w->tables++;
	for (int i = 0; i < 512; i++, iova += size) {
		uint64_t e = t[i];

		if (!(e & 3)) {
			w->bad += e != 0;
			continue;
		}
		uint64_t to = e & 0x000ffffffffff000;
		if (level && !(e & 0x80)) {
			if (to > w->bytes - 4096) {
				w->bad++;
				continue;
			}
			table(w, to, level - 1, iova);
			continue;
		}
		to &= ~(size - 1);
		uint64_t rights = e & 7;
		w->leaves++;
		if (w->now.iova + w->now.size == iova && w->now.pa + w->now.size == to &&
		    w->now.rights == rights && w->now.size) {
			w->now.size += size;
		} else {
			flush(w);
			w->now = (struct range){ iova, to, size, rights };
		}
	}
	w->entries += 512;
}

/* out: ranges, leaves, bad, entries, checksum */
void pagetable_walk(const uint64_t *words, uint64_t bytes, uint64_t root, int levels, int check,
		    const char *text, struct walk *w, uint64_t *out)
{
	w->words = words;
	w->bytes = bytes;
	w->entries = w->tables = w->leaves = w->bad = w->ranges = w->checksum = 0;
	w->now.size = 0;
	w->text = text ? fopen(text, "w") : NULL;
	w->emit = w->text ? print : check ? hash : keep;
	table(w, root, levels - 1, 0);
	flush(w);
	if (w->text)
		fclose(w->text);
	out[0] = w->ranges;
	out[1] = w->leaves;
	out[2] = w->bad;
	out[3] = w->entries;
	out[4] = w->checksum;
}

/* out: the physical address of each iova, or all ones */
void pagetable_translate(const uint64_t *words, uint64_t bytes, uint64_t root, int levels,
			 const uint64_t *iova, uint64_t count, uint64_t *out)
{
	for (uint64_t n = 0; n < count; n++) {
		uint64_t pa = root, to = ~0ull;

		for (int level = levels - 1; level >= 0; level--) {
			const int shift = 12 + 9 * level;
			uint64_t e = words[(pa + ((iova[n] >> shift) & 511) * 8) / 8];

			if (!(e & 3))
				break;
			if (!level || e & 0x80) {
				uint64_t mask = (1ull << shift) - 1;
				to = (e & 0x000ffffffffff000 & ~mask) | (iova[n] & mask);
				break;
			}
			pa = e & 0x000ffffffffff000;
			if (pa > bytes - 4096)
				break;
		}
		out[n] = to;
	}
}
