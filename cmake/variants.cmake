# One source, compiled once per instruction set: dispatch.cpp chooses among them on the machine.
include(CheckCXXCompilerFlag)
include(CheckCXXSourceCompiles)

# The best first; those with bf16 multiply pairs of bfloat16 by one instruction.
set(MEST_SETS_x86_64 avx512bf16 avx512 avx2)
set(MEST_SETS_aarch64 neonbf16)
set(MEST_FLAGS_avx512 -mavx512f -mavx512vl -mavx512dq -mavx512bw -mfma -mavx2)
set(MEST_FLAGS_avx512bf16 ${MEST_FLAGS_avx512} -mavx512bf16)
set(MEST_FLAGS_avx2 -mavx2 -mfma)
set(MEST_FLAGS_neonbf16 -march=armv8.2-a+bf16)
set(MEST_FLAGS_plain "")

# List the instruction sets that the target takes, plain last. The compiler is asked what it compiles
# for, since a cross build's own idea of the processor may be wrong.
function(mest_list_variants result)
  set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
  set(names "")
  foreach(processor x86_64 aarch64)
    check_cxx_source_compiles("#ifndef __${processor}__\n#error other\n#endif\n" MEST_IS_${processor})
    if(MEST_IS_${processor})
      foreach(name ${MEST_SETS_${processor}})
        list(JOIN MEST_FLAGS_${name} " " flags)
        check_cxx_compiler_flag("${flags}" MEST_COMPILES_${name})
        if(MEST_COMPILES_${name})
          list(APPEND names ${name})
        endif()
      endforeach()
    endif()
  endforeach()
  if(MEST_HERE AND names AND NOT CMAKE_CROSSCOMPILING)
    mest_keep_what_runs(names)
  endif()
  set(${result} ${names} plain PARENT_SCOPE)
endfunction()

# Leave in a list of instruction sets those that this processor runs.
function(mest_keep_what_runs list)
  set(CMAKE_TRY_COMPILE_TARGET_TYPE EXECUTABLE)
  unset(MEST_ASKED CACHE)
  try_run(MEST_ASKED compiled ${CMAKE_CURRENT_BINARY_DIR}/runs_here
    ${CMAKE_CURRENT_SOURCE_DIR}/cmake/runs_here.cpp
    CMAKE_FLAGS -DINCLUDE_DIRECTORIES=${NATIVE} -DCMAKE_CXX_STANDARD=17
    RUN_OUTPUT_VARIABLE names ARGS ${${list}})
  if(NOT compiled OR NOT MEST_ASKED EQUAL 0)
    message(FATAL_ERROR "cmake/runs_here.cpp does not say which instruction sets run here.")
  endif()
  set(${list} ${names} PARENT_SCOPE)
endfunction()

# Have a source know the names of what was compiled once for each instruction set: NAME=one,two...
function(mest_tell source name)
  list(JOIN ARGN "," names)
  set_property(SOURCE ${source} APPEND PROPERTY COMPILE_DEFINITIONS "${name}=${names}")
endfunction()

# Sources of a library, compiled for one instruction set.
function(mest_add_variant library name)
  set(object ${library}_${name})
  add_library(${object} OBJECT ${ARGN})
  set_target_properties(${object} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_compile_definitions(${object} PRIVATE MEST_VARIANT=${name})
  target_compile_options(${object} PRIVATE ${MEST_FLAGS_${name}})
  target_link_libraries(${object} PRIVATE mest_flags)
  target_sources(${library} PRIVATE $<TARGET_OBJECTS:${object}>)
  if(NOT name STREQUAL "plain")
    set_property(GLOBAL APPEND PROPERTY MEST_NEWER ${object})
  endif()
endfunction()

# Files of operators, and the table of them, once for each instruction set. They use the standard
# library, whose inline functions -fno-weak keeps within their object: Clang has no such option, and
# compiles them for the baseline alone (the kernels do without it).
function(mest_add_operators library)
  set(names plain)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    set(names ${MEST_VARIANTS})
  endif()
  list(TRANSFORM ARGN PREPEND ${RUNTIME}/ OUTPUT_VARIABLE sources)
  list(TRANSFORM sources APPEND .cpp)
  mest_tell(${RUNTIME}/parts.cpp MEST_PARTS ${ARGN})
  mest_tell(${RUNTIME}/table.cpp MEST_VARIANTS ${names})
  foreach(name ${names})
    mest_add_variant(${library} ${name} ${RUNTIME}/parts.cpp ${sources})
    # Nothing reads the flags of floating-point exceptions, which would forbid to choose by vectors.
    target_compile_options(${library}_${name} PRIVATE -fno-trapping-math)
    if(NOT name STREQUAL "plain")
      target_compile_options(${library}_${name} PRIVATE -fno-weak)
    endif()
  endforeach()
endfunction()

# The linker keeps one of several copies of an inline function, and might keep one that only a
# newer processor can run: a variant must define none. (Unoptimised code always has some.)
function(mest_test_variants_share_nothing)
  if(MEST_SANITIZE OR MEST_SANITIZE_THREADS OR NOT CMAKE_NM)
    return()
  endif()
  get_property(objects GLOBAL PROPERTY MEST_NEWER)
  foreach(object ${objects})
    add_test(NAME ${object}_shares_nothing COMMAND ${CMAKE_COMMAND} -DNM=${CMAKE_NM}
      "-DOBJECTS=$<JOIN:$<TARGET_OBJECTS:${object}>,,>"
      -P ${CMAKE_CURRENT_SOURCE_DIR}/cmake/shares_nothing.cmake)
  endforeach()
endfunction()
