// Independent gathers in one parallel region: many small ones are worth more threads than each by
// itself, and levels of one map that are computed side by side read it once.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "mix_cpu.h"

namespace msr {

template <typename acc_t>
class ManyGatherCpu {
 public:
  ManyGatherCpu(const std::vector<const GatherParams*>& all, const RowOps<acc_t>& ops) {
    jobs_.reserve(all.size());
    for (const GatherParams* params : all) {
      Job job;
      if (needs_mixing(*params)) {
        job.mix = std::make_unique<MixCpu<acc_t>>(*params, ops);
      } else {
        job.gather = std::make_unique<GatherCpu<acc_t>>(*params, ops);
      }
      const int64_t chunks = job.gather ? job.gather->num_chunks() : job.mix->num_chunks();
      for (int64_t chunk = 0; chunk < chunks; ++chunk)
        tasks_.push_back({static_cast<double>(2 * chunk + 1) / static_cast<double>(2 * chunks),
                          static_cast<int32_t>(jobs_.size()), chunk});
      jobs_.push_back(std::move(job));
    }
    // All jobs advance at the same pace: those that read the same map find its rows in the cache.
    std::stable_sort(tasks_.begin(), tasks_.end(),
                     [](const Task& a, const Task& b) { return a.progress < b.progress; });
  }

  int64_t num_tasks() const { return static_cast<int64_t>(tasks_.size()); }

  // Does tasks [begin, end).
  void run(int64_t begin, int64_t end) const {
    std::vector<Scratch> scratch(jobs_.size());
    for (int64_t i = begin; i < end; ++i) {
      const Task& task = tasks_[i];
      const Job& job = jobs_[task.job];
      Scratch& own = scratch[task.job];
      if (job.gather) {
        if (!own.gather)
          own.gather = std::make_unique<typename GatherCpu<acc_t>::Scratch>(*job.gather);
        job.gather->run(task.chunk, task.chunk + 1, *own.gather);
      } else {
        if (!own.mix) own.mix = std::make_unique<typename MixCpu<acc_t>::Scratch>(*job.mix);
        job.mix->run(task.chunk, task.chunk + 1, *own.mix);
      }
    }
  }

 private:
  // One of both.
  struct Job {
    std::unique_ptr<GatherCpu<acc_t>> gather;
    std::unique_ptr<MixCpu<acc_t>> mix;
  };
  struct Scratch {
    std::unique_ptr<typename GatherCpu<acc_t>::Scratch> gather;
    std::unique_ptr<typename MixCpu<acc_t>::Scratch> mix;
  };
  struct Task {
    double progress;  // through its job
    int32_t job;
    int64_t chunk;
  };

  std::vector<Job> jobs_;
  std::vector<Task> tasks_;
};

}  // namespace msr
