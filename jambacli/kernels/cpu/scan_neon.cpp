// The convolution and the scan at this file's instruction set.
#include "scan_impl.h"

namespace jamba {

const ScanOps kScanNeon{kLanes, conv, scan};

}  // namespace jamba
