# cmake -DNM=nm -DOBJECTS=file,file... -P shares_nothing.cmake: fail if an object defines a weak
# function.
string(REPLACE "," ";" objects "${OBJECTS}")
foreach(object ${objects})
  execute_process(COMMAND ${NM} -C ${object} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[0-9a-f]+ W [^\n]*" shared "${symbols}")
  if(shared)
    list(JOIN shared "\n  " shown)
    message(FATAL_ERROR "${object} shares with other objects:\n  ${shown}\n"
      "Make these static, or put them in an unnamed namespace.")
  endif()
endforeach()
