/* SPDX-License-Identifier: MIT */
/*
 * A 64 KiB ROM that hands the machine to a kernel the way kexec's purgatory does: 64-bit
 * mode, the first 4 GiB mapped to themselves, rsi = boot_params, jump to the 64-bit entry.
 *
 * The lab fills in, by offset into the ROM:
 *   0x0000  page tables: one PML4, one PDPT, four page directories (they are read-only, so
 *           the accessed and dirty bits are set in advance)
 *   0x8000  u64 entry point, u64 address of boot_params
 */
#define ROM_BASE 0xffff0000
#define OFFSET(label) (label - rom)

	.text
	.code16
rom:
	.org 0x8000
parameters:
	.quad 0, 0

	.balign 16
gdt:
	.quad 0
	.quad 0x00cf9a000000ffff	/* 0x08: 32-bit code */
	.quad 0x00af9a000000ffff	/* 0x10: 64-bit code, __BOOT_CS */
	.quad 0x00cf92000000ffff	/* 0x18: data, __BOOT_DS */
gdt_end:
gdt_pointer:
	.word gdt_end - gdt - 1
	.long ROM_BASE + OFFSET(gdt)

real_mode:
	cli
	cld
	lgdtl	%cs:OFFSET(gdt_pointer)
	movl	%cr0, %eax
	orb	$1, %al
	movl	%eax, %cr0
	ljmpl	$0x08, $(ROM_BASE + OFFSET(protected_mode))

	.code32
protected_mode:
	movw	$0x18, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movw	%ax, %fs
	movw	%ax, %gs

	/* i440fx: registers PAM0 to PAM6 (0x59-0x5f) make 0xc0000-0xfffff plain memory. */
	movw	$0xcf8, %dx
	movl	$0x80000058, %eax
	outl	%eax, %dx
	movw	$0xcfc, %dx
	inl	%dx, %eax
	andl	$0x000000ff, %eax
	orl	$0x33333000, %eax
	outl	%eax, %dx
	movw	$0xcf8, %dx
	movl	$0x8000005c, %eax
	outl	%eax, %dx
	movw	$0xcfc, %dx
	movl	$0x33333333, %eax
	outl	%eax, %dx

	/* Long mode. */
	movl	$ROM_BASE, %eax
	movl	%eax, %cr3
	movl	$0x20, %eax		/* CR4.PAE */
	movl	%eax, %cr4
	movl	$0xc0000080, %ecx	/* EFER */
	rdmsr
	orl	$0x100, %eax		/* LME */
	wrmsr
	movl	%cr0, %eax
	orl	$0x80000000, %eax	/* CR0.PG */
	movl	%eax, %cr0
	ljmpl	$0x10, $(ROM_BASE + OFFSET(long_mode))

	.code64
long_mode:
	movw	$0x18, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movl	$(ROM_BASE + OFFSET(parameters)), %eax
	movq	(%rax), %rcx
	movq	8(%rax), %rsi
	xorl	%ebx, %ebx
	xorl	%ebp, %ebp
	xorl	%edi, %edi
	xorl	%esp, %esp
	jmp	*%rcx

	/* The reset vector: a near jump, relative to the end of the instruction. */
	.code16
	.org 0xfff0
	.byte 0xe9
	.word OFFSET(real_mode) - 0xfff3
	.org 0x10000
