// The emulator as one unit, so that the checks of an access are inlined into its callback.
#include "access.cpp"
#include "collectives.cpp"
#include "fibers.cpp"
#include "launch.cpp"
#include "undefined.cpp"
