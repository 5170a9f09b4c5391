// Tap tables that were made before: networks repeat their sizes, and to list the taps of a small
// axis takes longer than to use them.
#pragma once

#include <memory>

#include "tables_cpu.h"

namespace msr {

// What a table is prepared for beyond its plain lists.
enum class TableUse { kLists, kBlocks, kPairs };

// The latest tables of a thread, as many as a small network has.
template <typename acc_t>
class TableCache {
 public:
  using Table = std::shared_ptr<const TapTable<acc_t>>;

  Table find(const Axis& axis, TableUse use, const RowOps<acc_t>& ops) {
    for (const Entry& entry : entries_) {
      if (entry.table && entry.use == use && entry.ops == &ops && same_taps(entry.axis, axis))
        return entry.table;
    }
    auto made = std::make_shared<TapTable<acc_t>>(axis);
    if (use == TableUse::kBlocks) made->prepare_blocks(ops.lanes, ops.can_look_up);
    if (use == TableUse::kPairs) made->prepare_pairs();
    // To make a long one takes no time beside its use, but it would take memory.
    if (std::max(axis.in_size, axis.out_size) <= kLongest) {
      entries_[next_] = {axis, use, &ops, made};
      next_ = (next_ + 1) % kEntries;
    }
    return made;
  }

 private:
  static constexpr int kEntries = 32;
  static constexpr int32_t kLongest = 1024;

  struct Entry {
    Axis axis;
    TableUse use;
    const RowOps<acc_t>* ops;
    Table table;
  };
  Entry entries_[kEntries] = {};
  int next_ = 0;
};

template <typename acc_t>
std::shared_ptr<const TapTable<acc_t>> tap_table(const Axis& axis, TableUse use,
                                                 const RowOps<acc_t>& ops) {
  thread_local TableCache<acc_t> cache;
  return cache.find(axis, use, ops);
}

}  // namespace msr
