/* SPDX-License-Identifier: MIT */
/*
 * The only user program of the lab's virtual machines. It runs the commands of /script,
 * one a line, and answers on the second serial port with one JSON object a line.
 *
 * Producer:
 *   write PATH TEXT                      write TEXT to a file of the kernel
 *   session HEXNAME                      create a session; it becomes the current one
 *   memfd TOKEN KEY SIZE POSITION SEALS FLAGS METHOD RUNS
 *                                        make a memory file and preserve it. METHOD: write, mmap
 *                                        or fallocate; RUNS: FIRST+COUNT,... in pages, or -
 *   load COMMANDLINE                     kexec_file_load of /next/kernel and /next/initrd
 *   kexec                                jump
 * Consumer:
 *   use SIZE                             write to free memory, SIZE bytes at most, and free it
 *   open                                 open /dev/liveupdate
 *   retrieve HEXNAME                     retrieve a session; it becomes the current one
 *   file TOKEN FRAMES                    retrieve a file: size, position, seals, SHA-256 and, if
 *                                        FRAMES is 1, its page frames
 *   finish                               finish the current session
 * Both:
 *   exists PATH                          does it exist
 *   send PATH NAME                       send a file's bytes
 *   list DIRECTORY NAME                  send every file below a directory
 *   log NAME                             send the kernel's log
 *   symbols NAME SYMBOL...               send those lines of /proc/kallsyms
 *   mark NAME                            say so and wait until the host answers
 *   end                                  say so and reboot
 *
 * Numbers are in C notation. A command that fails says so and the script goes on: what a
 * kernel refuses is a result.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "sha256.h"

enum {
	PAGE = 4096,
	CHUNK = 1 << 20,
	HEARTBEAT = 32 << 20, /* bytes hashed between two signs of life */
	SYSLOG_READ_ALL = 3,
};

/* The live update ioctls as user space sees them (include/uapi/linux/liveupdate.h). */
#define LIVEUPDATE_CREATE _IO(0xba, 0x00)
#define LIVEUPDATE_RETRIEVE _IO(0xba, 0x01)
#define LIVEUPDATE_PRESERVE_FD _IO(0xba, 0x40)
#define LIVEUPDATE_RETRIEVE_FD _IO(0xba, 0x41)
#define LIVEUPDATE_FINISH _IO(0xba, 0x42)

struct session_argument {
	uint32_t size;
	int32_t fd;
	uint8_t name[64];
};

struct file_argument {
	uint32_t size;
	int32_t fd;
	uint64_t token;
};

struct finish_argument {
	uint32_t size;
	uint32_t reserved;
};

static int channel = -1;
static int liveupdate = -1;
static int session = -1;
static char session_hex[2 * 64 + 1];

/* Talking to the host. */

static void send_bytes(const void *data, size_t n)
{
	const char *p = data;

	while (n) {
		ssize_t done = write(channel, p, n);

		if (done < 0 && errno != EINTR && errno != EAGAIN)
			return;
		if (done > 0) {
			p += done;
			n -= done;
		}
	}
}

static void say(const char *format, ...)
{
	char line[1024];
	va_list arguments;
	int n;

	va_start(arguments, format);
	n = vsnprintf(line, sizeof line - 1, format, arguments);
	va_end(arguments);
	if (n > (int)sizeof line - 2)
		n = sizeof line - 2;
	line[n] = '\n';
	send_bytes(line, n + 1);
}

static void wait_for_host(void)
{
	char c = 0;

	while (c != '\n' && (read(channel, &c, 1) >= 0 || errno == EINTR))
		;
}

/* Bytes follow their header line; names are chosen by the host and need no escapes. */
static void send_blob(const char *name, const void *data, size_t n)
{
	say("{\"event\":\"blob\",\"name\":\"%s\",\"size\":%zu}", name, n);
	send_bytes(data, n);
}

static void send_file(const char *path, const char *name)
{
	size_t room = CHUNK, n = 0;
	char *data = malloc(room);
	int fd = open(path, O_RDONLY | O_NONBLOCK);

	while (fd >= 0 && data) {
		ssize_t got = read(fd, data + n, room - n);

		if (got <= 0)
			break;
		n += got;
		if (n == room)
			data = realloc(data, room *= 2);
	}
	if (fd >= 0) {
		close(fd);
		send_blob(name, data, n);
	}
	free(data);
}

static void send_tree(const char *directory, const char *name)
{
	DIR *d = opendir(directory);
	struct dirent *entry;
	char path[512], as[512];
	struct stat st;

	while (d && (entry = readdir(d))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "%s/%s", directory, entry->d_name);
		snprintf(as, sizeof as, "%s/%s", name, entry->d_name);
		if (lstat(path, &st))
			continue;
		if (S_ISDIR(st.st_mode))
			send_tree(path, as);
		else
			send_file(path, as);
	}
	if (d)
		closedir(d);
}

static void send_log(const char *name)
{
	size_t room = 16 << 20;
	char *log = malloc(room);
	long n = syscall(SYS_syslog, SYSLOG_READ_ALL, log, room);

	if (n > 0)
		send_blob(name, log, n);
	free(log);
}

static void send_symbols(const char *name, char *wanted)
{
	FILE *f = fopen("/proc/kallsyms", "r");
	char line[256], symbol[128], pattern[132], *found = calloc(1, 1 << 16);
	char list[2048];

	snprintf(list, sizeof list, " %s ", wanted);
	while (f && fgets(line, sizeof line, f)) {
		if (sscanf(line, "%*s %*s %127s", symbol) != 1)
			continue;
		snprintf(pattern, sizeof pattern, " %s ", symbol);
		if (strstr(list, pattern) && strlen(found) + sizeof line < 1 << 16)
			strcat(found, line);
	}
	if (f)
		fclose(f);
	send_blob(name, found, strlen(found));
	free(found);
}

/* Content: word i of a file with key k is mix(mix(k) + i), little endian. */

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}

static void fill(uint8_t *out, size_t n, uint64_t key, uint64_t offset)
{
	uint64_t base = mix(key);

	for (size_t i = 0; i < n; i += 8) {
		uint64_t word = mix(base + (offset + i) / 8);

		memcpy(out + i, &word, n - i < 8 ? n - i : 8);
	}
}

static int fill_runs(int fd, const char *method, const char *runs, uint64_t key, uint64_t size)
{
	bool mapped = !strcmp(method, "mmap");
	uint8_t *buffer = malloc(CHUNK), *map = NULL;
	int error = 0;

	if (mapped && size) {
		map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (map == MAP_FAILED)
			return errno;
	}
	while (!error && *runs >= '0' && *runs <= '9') {
		char *next;
		uint64_t at = strtoull(runs, &next, 0) * PAGE;
		uint64_t end = at + strtoull(next + 1, &next, 0) * PAGE;

		for (end = end < size ? end : size; at < end && !error;) {
			size_t n = end - at < CHUNK ? end - at : CHUNK;

			if (mapped) {
				fill(map + at, n, key, at);
			} else {
				fill(buffer, n, key, at);
				if (pwrite(fd, buffer, n, at) != (ssize_t)n)
					error = errno ? errno : EIO;
			}
			at += n;
		}
		runs = *next == ',' ? next + 1 : next;
	}
	if (map)
		munmap(map, size);
	free(buffer);
	return error;
}

/* Page frames of a file as FIRST+COUNT runs in file order; a hole counts as frame 0. */
static void send_frames(int fd, uint64_t token, uint64_t size)
{
	uint64_t pages = (size + PAGE - 1) / PAGE, first = 0, count = 0, frame;
	size_t room = 1 << 16, n = 0;
	volatile uint8_t *map = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
	int pagemap = open("/proc/self/pagemap", O_RDONLY);
	char *out = malloc(room), name[64];

	if (map == MAP_FAILED || pagemap < 0 || !out)
		goto out;
	for (uint64_t i = 0; i <= pages; i++) {
		frame = 0;
		if (i < pages) {
			(void)map[i * PAGE];
			if (pread(pagemap, &frame, 8, ((uintptr_t)map / PAGE + i) * 8) != 8)
				break;
			frame &= (1ULL << 55) - 1;
		}
		if (i < pages && count && frame == first + count) {
			count++;
			continue;
		}
		if (n + 64 > room)
			out = realloc(out, room *= 2);
		if (count)
			n += sprintf(out + n, "%#" PRIx64 "+%" PRIu64 "\n", first, count);
		first = frame;
		count = 1;
	}
	snprintf(name, sizeof name, "frames/%016" PRIx64, token);
	send_blob(name, out, n);
out:
	if (map != MAP_FAILED)
		munmap((void *)map, size);
	if (pagemap >= 0)
		close(pagemap);
	free(out);
}

/* Commands. */

/* The next word of a command as a number, in C notation. */
static uint64_t number(char **rest)
{
	return strtoull(*rest, rest, 0);
}

static void unhex(const char *hex, uint8_t out[64])
{
	memset(out, 0, 64);
	for (int i = 0; i < 63 && hex[2 * i] && hex[2 * i + 1]; i++) {
		unsigned int byte;

		sscanf(hex + 2 * i, "%2x", &byte);
		out[i] = byte;
	}
}

static void do_session(const char *command, const char *hex, unsigned long request)
{
	struct session_argument a = { .size = sizeof a, .fd = -1 };
	int error = 0;

	unhex(hex, a.name);
	snprintf(session_hex, sizeof session_hex, "%s", hex);
	if (liveupdate < 0)
		liveupdate = open("/dev/liveupdate", O_RDWR | O_CLOEXEC);
	if (liveupdate < 0 || ioctl(liveupdate, request, &a))
		error = errno;
	/* The descriptor of an earlier session stays open: closing it would undo it. */
	session = error ? -1 : a.fd;
	say("{\"event\":\"%s\",\"name\":\"%s\",\"errno\":%d}", command, session_hex, error);
}

static void do_memfd(char *arguments)
{
	uint64_t token = number(&arguments), key = number(&arguments), size = number(&arguments);
	uint64_t position = number(&arguments);
	unsigned int seals = number(&arguments), flags = number(&arguments);
	char method[16] = "", name[32];
	int used = 0, fd, error = 0;
	struct file_argument a;

	if (sscanf(arguments, "%15s %n", method, &used) != 1) {
		say("{\"event\":\"bad-command\"}");
		return;
	}
	snprintf(name, sizeof name, "lab-%016" PRIx64, token);
	fd = syscall(SYS_memfd_create, name, flags);
	if (fd < 0 || ftruncate(fd, size))
		error = errno;
	else if (!strcmp(method, "fallocate"))
		error = fallocate(fd, 0, 0, size) ? errno : 0;
	else
		error = fill_runs(fd, method, arguments + used, key, size);
	if (!error && (lseek(fd, position, SEEK_SET) < 0 || (seals && fcntl(fd, F_ADD_SEALS, seals))))
		error = errno;
	if (error) {
		say("{\"event\":\"memfd\",\"session\":\"%s\",\"token\":%" PRIu64 ",\"setup_errno\":%d}",
		    session_hex, token, error);
		return;
	}
	a = (struct file_argument){ .size = sizeof a, .fd = fd, .token = token };
	error = session < 0 ? EBADF : ioctl(session, LIVEUPDATE_PRESERVE_FD, &a) ? errno : 0;
	if (size && size <= 64 << 20)
		send_frames(fd, token, size);
	say("{\"event\":\"memfd\",\"session\":\"%s\",\"token\":%" PRIu64 ",\"errno\":%d,\"seals\":%d,"
	    "\"position\":%lld}",
	    session_hex, token, error, fcntl(fd, F_GET_SEALS), (long long)lseek(fd, 0, SEEK_CUR));
}

static void do_file(char *arguments)
{
	static uint8_t buffer[CHUNK];
	struct file_argument a = { .size = sizeof a, .fd = -1 };
	uint64_t offset = 0;
	struct sha256 sum;
	struct stat st;
	long long position;
	int frames, seals;
	ssize_t got;
	char hex[65];

	a.token = number(&arguments);
	frames = number(&arguments);
	if (session < 0 || ioctl(session, LIVEUPDATE_RETRIEVE_FD, &a)) {
		say("{\"event\":\"file\",\"session\":\"%s\",\"token\":%" PRIu64 ",\"errno\":%d}", session_hex,
		    a.token, session < 0 ? EBADF : errno);
		return;
	}
	fstat(a.fd, &st);
	position = lseek(a.fd, 0, SEEK_CUR);
	seals = fcntl(a.fd, F_GET_SEALS);
	sha256_start(&sum);
	while ((got = pread(a.fd, buffer, sizeof buffer, offset)) > 0) {
		sha256_update(&sum, buffer, got);
		offset += got;
		if (offset % HEARTBEAT == 0)
			say("{\"event\":\"alive\"}");
	}
	sha256_finish(&sum, hex);
	if (frames && st.st_size && st.st_size <= 64 << 20)
		send_frames(a.fd, a.token, st.st_size);
	say("{\"event\":\"file\",\"session\":\"%s\",\"token\":%" PRIu64 ",\"errno\":0,\"size\":%lld,"
	    "\"position\":%lld,\"seals\":%d,\"blocks\":%lld,\"read\":%" PRIu64 ",\"sha256\":\"%s\"}",
	    session_hex, a.token, (long long)st.st_size, position, seals, (long long)st.st_blocks, offset,
	    hex);
}

/*
 * Fill free memory, as programs that start meanwhile would, and give it back. A child does it:
 * scratch counts as free but not everything can use it, so memory may run out before it seems
 * to, and then the kernel must have somebody else than init to kill.
 */
static void fill_memory(uint64_t limit)
{
	uint64_t used = 0;
	int score = open("/proc/self/oom_score_adj", O_WRONLY);
	uint8_t *all = mmap(NULL, limit, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	struct sysinfo now;

	if (score < 0 || write(score, "1000", 4) != 4)
		_exit(1);
	while (all != MAP_FAILED && used + CHUNK <= limit && !sysinfo(&now)) {
		if (now.freeram * now.mem_unit < 3 << 20)
			break;
		memset(all + used, 0xa5, CHUNK);
		used += CHUNK;
	}
	_exit(0);
}

static void do_use(uint64_t limit)
{
	int status = -1;
	pid_t child = fork();

	if (!child)
		fill_memory(limit);
	if (child > 0)
		waitpid(child, &status, 0);
	say("{\"event\":\"use\",\"status\":%d}", status);
}

static void do_finish(void)
{
	struct finish_argument a = { .size = sizeof a };
	int error = session < 0 ? EBADF : ioctl(session, LIVEUPDATE_FINISH, &a) ? errno : 0;

	say("{\"event\":\"finish\",\"name\":\"%s\",\"errno\":%d}", session_hex, error);
}

static void do_write(char *arguments)
{
	char *text = strchr(arguments, ' ');
	int fd, error = 0;

	if (!text)
		return;
	*text++ = 0;
	fd = open(arguments, O_WRONLY);
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		error = errno;
	if (fd >= 0)
		close(fd);
	say("{\"event\":\"write\",\"path\":\"%s\",\"errno\":%d}", arguments, error);
}

static void do_load(const char *command_line)
{
	int kernel = open("/next/kernel", O_RDONLY), initrd = open("/next/initrd", O_RDONLY);
	long failed = syscall(SYS_kexec_file_load, kernel, initrd, strlen(command_line) + 1, command_line, 0);

	say("{\"event\":\"load\",\"errno\":%d}", failed ? errno : 0);
	close(kernel);
	close(initrd);
}

static void run(char *line)
{
	char *rest = strchr(line, ' ');

	if (rest)
		*rest++ = 0;
	else
		rest = line + strlen(line);
	if (!strcmp(line, "write")) {
		do_write(rest);
	} else if (!strcmp(line, "session")) {
		do_session(line, rest, LIVEUPDATE_CREATE);
	} else if (!strcmp(line, "retrieve")) {
		do_session(line, rest, LIVEUPDATE_RETRIEVE);
	} else if (!strcmp(line, "memfd")) {
		do_memfd(rest);
	} else if (!strcmp(line, "file")) {
		do_file(rest);
	} else if (!strcmp(line, "use")) {
		do_use(number(&rest));
	} else if (!strcmp(line, "finish")) {
		do_finish();
	} else if (!strcmp(line, "load")) {
		do_load(rest);
	} else if (!strcmp(line, "kexec")) {
		reboot(RB_KEXEC);
		say("{\"event\":\"kexec\",\"errno\":%d}", errno);
	} else if (!strcmp(line, "open")) {
		liveupdate = open("/dev/liveupdate", O_RDWR | O_CLOEXEC);
		say("{\"event\":\"open\",\"errno\":%d}", liveupdate < 0 ? errno : 0);
	} else if (!strcmp(line, "exists")) {
		say("{\"event\":\"exists\",\"path\":\"%s\",\"exists\":%s}", rest,
		    access(rest, F_OK) ? "false" : "true");
	} else if (!strcmp(line, "send") || !strcmp(line, "list")) {
		char *name = strchr(rest, ' ');

		if (name) {
			*name++ = 0;
			(*line == 's' ? send_file : send_tree)(rest, name);
		}
	} else if (!strcmp(line, "log")) {
		send_log(rest);
	} else if (!strcmp(line, "symbols")) {
		char *wanted = strchr(rest, ' ');

		if (wanted) {
			*wanted++ = 0;
			send_symbols(rest, wanted);
		}
	} else if (!strcmp(line, "mark")) {
		say("{\"event\":\"mark\",\"name\":\"%s\"}", rest);
		wait_for_host();
	} else if (!strcmp(line, "end")) {
		say("{\"event\":\"end\"}");
		tcdrain(channel);
		reboot(RB_AUTOBOOT);
	} else {
		say("{\"event\":\"bad-command\"}");
	}
}

int main(void)
{
	static char line[1 << 16];
	struct termios raw;
	FILE *script;
	int console;

	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	mount("debugfs", "/sys/kernel/debug", "debugfs", 0, NULL);
	console = open("/dev/console", O_RDWR);
	for (int fd = 0; console >= 0 && fd < 3; fd++)
		dup2(console, fd);
	channel = open("/dev/ttyS1", O_RDWR | O_NOCTTY);
	if (channel >= 0 && !tcgetattr(channel, &raw)) {
		cfmakeraw(&raw);
		cfsetspeed(&raw, B115200);
		tcsetattr(channel, TCSANOW, &raw);
	}
	say("{\"event\":\"init\"}");
	script = fopen("/script", "r");
	while (script && fgets(line, sizeof line, script)) {
		line[strcspn(line, "\n")] = 0;
		if (*line)
			run(line);
	}
	say("{\"event\":\"end\"}");
	tcdrain(channel);
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}
