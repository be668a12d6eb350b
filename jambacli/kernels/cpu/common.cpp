// What every entry point of this library shares: the version that Python checks before it calls anything else.
#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

EXPORT int kernels_abi_version() { return 1; }
