/* What perf_analyzer 2.60 asks of a newer glibc (2.38) and libstdc++ (13) than Debian 12 has; see perf_analyzer.py. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

long __isoc23_strtol(const char *text, char **end, int base) { return strtol(text, end, base); }
long long __isoc23_strtoll(const char *text, char **end, int base) { return strtoll(text, end, base); }
unsigned long __isoc23_strtoul(const char *text, char **end, int base) { return strtoul(text, end, base); }
unsigned long long __isoc23_strtoull(const char *text, char **end, int base) { return strtoull(text, end, base); }

int __isoc23_sscanf(const char *text, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int count = vsscanf(text, format, arguments);
    va_end(arguments);
    return count;
}

/* The newer libstdc++ makes cout and its kin when it is loaded, and this name says that it does. The older one makes them
   for who asks: std::ios_base::Init. */
extern void _ZNSt8ios_base4InitC1Ev(void *);
void _ZSt21ios_base_library_initv(void) {}
__attribute__((constructor)) static void streams(void) {
    static char one[8];
    _ZNSt8ios_base4InitC1Ev(one);
}

/* std::string::_M_replace_cold: put `new`, of `added` bytes, in place of `taken` bytes at `at`, `tail` bytes before the
   end; `new` may be part of the string itself. */
void _ZNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEE15_M_replace_coldEPcmPKcmm(
    void *self, char *at, size_t taken, const char *new, size_t added, size_t tail) {
    (void)self;
    char *copy = added ? malloc(added) : NULL;
    if (added && !copy) abort();
    if (added) memcpy(copy, new, added);
    memmove(at + added, at + taken, tail);
    if (added) memcpy(at, copy, added);
    free(copy);
}
