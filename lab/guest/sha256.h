/* SPDX-License-Identifier: MIT */
/* SHA-256 (FIPS 180-4), streaming. */
#ifndef LAB_SHA256_H
#define LAB_SHA256_H

#include <stddef.h>
#include <stdint.h>

struct sha256 {
	uint32_t state[8];
	uint8_t pending[64];
	uint64_t total;
};

void sha256_start(struct sha256 *s);
void sha256_update(struct sha256 *s, const void *data, size_t n);
/* Writes 64 hex digits and a NUL. */
void sha256_finish(struct sha256 *s, char hex[65]);

#endif
