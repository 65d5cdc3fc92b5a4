#pragma once
// Kernels of the CPU that are compiled for two instruction sets: x_cpu.cpp for the one that all of weft is
// built for, into the namespace base, and once more through x_avx512_cpu.cpp, whose flags stand in
// CMakeLists.txt, into the namespace avx512. Which of them serves is decided at run time.
//
// Such a source calls no template or inline function of another header that is not always inlined: the linker
// keeps one copy of each, and it might be the one that this processor cannot run.

#ifndef WEFT_INSTRUCTIONS
#define WEFT_INSTRUCTIONS base
#endif

namespace weft::cpu {

bool has_avx512();  // this processor

namespace WEFT_INSTRUCTIONS {
#ifdef __AVX512F__
constexpr int kVectorBytes = 64;
#else
constexpr int kVectorBytes = 32;
#endif
}  // namespace WEFT_INSTRUCTIONS

}  // namespace weft::cpu
