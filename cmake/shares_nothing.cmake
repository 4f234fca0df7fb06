# cmake -DNM=nm -DOBJECT=file -P shares_nothing.cmake: fail if the object defines a weak function.
execute_process(COMMAND ${NM} -C ${OBJECT} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[0-9a-f]+ W [^\n]*" shared "${symbols}")
if(shared)
  list(JOIN shared "\n  " shown)
  message(FATAL_ERROR "${OBJECT} shares with other objects:\n  ${shown}\n"
    "Make these static, or put them in an unnamed namespace.")
endif()
