// Prints those of the named instruction sets that this processor runs, as a list of CMake's.
#include <iostream>

#include "instruction_sets.h"

int main(int count, char** names) {
    const char* before = "";
    for (int i = 1; i < count; ++i) {
        if (!mest::runs(names[i])) continue;
        std::cout << before << names[i];
        before = ";";
    }
}
