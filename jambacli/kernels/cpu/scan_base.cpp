// The convolution and the scan in plain C++.
#include "scan_impl.h"

namespace jamba {

const ScanOps kScanBase{kLanes, conv, scan};

}  // namespace jamba
