/* Preloaded into linux.uml, so that it runs on processors with AMX.
 *
 * A tracer may set a thread's extended state (NT_X86_XSTATE) only as a whole: Linux refuses a shorter one with EFAULT
 * (xstateregs_set, arch/x86/kernel/fpu/regset.c). Debian 12's linux.uml has room for 2,696 bytes, which is all but AMX; with
 * AMX it is 11,008. Here what linux.uml gives is completed by what the thread has.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

enum { COMPONENTS = 512, KNOWN = 0x3ff }; /* where the mask of the components in use is; those that linux.uml knows */

static long (*libc_ptrace)(enum __ptrace_request, ...);
static char whole[1 << 16]; /* linux.uml's stacks are small, and it has one thread that traces */

__attribute__((constructor)) static void find(void) { *(void **)&libc_ptrace = dlsym(RTLD_NEXT, "ptrace"); }

long ptrace(enum __ptrace_request request, ...) {
    va_list arguments;
    va_start(arguments, request);
    long thread = va_arg(arguments, long);
    void *address = va_arg(arguments, void *);
    void *data = va_arg(arguments, void *);
    va_end(arguments);

    if (request == PTRACE_SETREGSET && (uintptr_t)address == NT_X86_XSTATE) {
        const struct iovec *given = data;
        struct iovec all = {whole, sizeof whole};
        if (!libc_ptrace(PTRACE_GETREGSET, thread, address, &all) && given->iov_len < all.iov_len) {
            uint64_t before, after;
            memcpy(&before, whole + COMPONENTS, sizeof before);
            memcpy(whole, given->iov_base, given->iov_len);
            memcpy(&after, whole + COMPONENTS, sizeof after);
            after = (after & KNOWN) | (before & ~(uint64_t)KNOWN);
            memcpy(whole + COMPONENTS, &after, sizeof after);
            return libc_ptrace(request, thread, address, &all);
        }
    }
    return libc_ptrace(request, thread, address, data);
}
