// Stand-in: the Python module.
#include <nanobind/nanobind.h>

#include "kernels.h"

NB_MODULE(_native, module) {
  module.def("variant_name", &mest::variant_name);
  module.def("thread_count", &mest::thread_count);
}
