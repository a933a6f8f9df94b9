# Fails where an object compiled for one instruction set defines a symbol that the linker could merge with another
# object's: the CPU that runs the merged copy may lack the instructions.
execute_process(COMMAND "${NM}" --defined-only "${OBJECT}" OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[^\n]* [VWuv] [^\n]*" weak "${symbols}")
if(weak)
  message(FATAL_ERROR "${OBJECT} defines mergeable symbols: ${weak}")
endif()
