// Weights in the order in which a kernel reads them, remembered between calls.

#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>

#include <map>
#include <mutex>
#include <tuple>
#include <utility>

namespace {

using at::Tensor;

// Packed weights, made when a weight is first used. A compiled graph holds plain int8 tensors, which it can store and
// load; oneDNN wants them in an order that depends on the machine. An entry is valid as long as the storage it was made
// from lives: a weak pointer tells, where an address could be given to another weight later.
class PackedWeights {
 public:
  struct Entry {
    c10::weak_intrusive_ptr<c10::StorageImpl> storage;
    Tensor packed, zeros;
  };

  // x_scale, x_zero  of what the weight is multiplied with, if the packing depends on it
  template <typename Pack>
  std::pair<Tensor, Tensor> get(const Tensor& weight, double x_scale, int64_t x_zero, const Pack& pack) {
    const auto storage = weight.storage().getWeakStorageImpl();
    const Key key{storage._unsafe_get_target(), weight.storage_offset(), x_scale, x_zero};
    const std::lock_guard<std::mutex> guard(mutex_);
    auto found = entries_.find(key);
    if (found == entries_.end() || found->second.storage.expired()) {
      forget_expired();
      Tensor zeros = at::zeros({weight.size(0)}, weight.options().dtype(at::kInt));
      found = entries_.insert_or_assign(key, Entry{storage, pack(), zeros}).first;
    }
    return {found->second.packed, found->second.zeros};
  }

 private:
  using Key = std::tuple<const void*, int64_t, double, int64_t>;

  void forget_expired() {
    for (auto it = entries_.begin(); it != entries_.end();)
      it = it->second.storage.expired() ? entries_.erase(it) : std::next(it);
  }

  std::mutex mutex_;
  std::map<Key, Entry> entries_;
};

PackedWeights& packed_weights() {
  static PackedWeights* const weights = new PackedWeights;  // never destroyed: tensors outlive static objects badly
  return *weights;
}

}  // namespace
