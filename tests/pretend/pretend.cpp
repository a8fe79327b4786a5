// A device "pretend" for PyTorch: host memory under another device's name.
//
// Every operation is the CPU's, on the same memory (`run`); refused is what a GPU refuses: operands on two devices, a
// generator of the CPU, NumPy's view of the memory.
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

namespace {

using at::IntArrayRef;
using at::IValue;
using at::Tensor;
using c10::Storage;
using c10::StorageImpl;

const at::Device kPretend(at::kPrivateUse1, 0);

bool here(const at::Device& device) { return device.type() == at::kPrivateUse1; }

// ------------------------------------------------------------------------------------------------ memory

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override { return renamed(c10::GetCPUAllocator()->allocate(bytes), kPretend); }
  c10::DeleterFnPtr raw_deleter() const override { return c10::GetCPUAllocator()->raw_deleter(); }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
  static c10::DataPtr renamed(c10::DataPtr memory, at::Device device) {
    void* data = memory.get();
    auto deleter = memory.get_deleter();
    return {data, memory.release_context(), deleter, device};
  }
};
Memory memory;
REGISTER_ALLOCATOR(at::kPrivateUse1, &memory)

// The memory of a storage as one of another device, which keeps the first alive.
Storage shared(const Storage& storage, at::Device device) {
  auto release = [](void* kept) { delete static_cast<Storage*>(kept); };
  c10::DataPtr data(storage.mutable_data(), new Storage(storage), release, device);
  c10::Allocator* allocator = here(device) ? &memory : c10::GetCPUAllocator();
  return Storage(Storage::use_byte_size_t(), storage.nbytes(), std::move(data), allocator, /*resizable=*/true);
}

Tensor on(const Storage& storage, const Tensor& like) {
  auto key = here(storage.device()) ? c10::DispatchKey::PrivateUse1 : c10::DispatchKey::CPU;
  auto made = at::detail::make_tensor<c10::TensorImpl>(Storage(storage), c10::DispatchKeySet(key), like.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return made;
}

Tensor host(const Tensor& x) { return here(x.device()) ? on(shared(x.storage(), at::kCPU), x) : x; }

// ---------------------------------------------------------------------------------------- any operation

// One call: its arguments on the host, and what has become of them.
struct Call {
  const c10::FunctionSchema& schema;
  bool pointwise, indexing;
  std::vector<std::pair<Storage, Storage>> storages;  // device, host
  std::vector<std::pair<Tensor, Tensor>> tensors;

  Tensor to_host(const Tensor& x, const c10::Argument& argument, bool index) {
    if (!x.defined()) return x;
    if (!here(x.device())) {
      bool written = argument.alias_info() && argument.alias_info()->isWrite();
      bool taken = index || (pointwise && x.dim() == 0 && !written);  // as CUDA takes it
      TORCH_CHECK(taken, schema.name(), ": Expected all tensors to be on the same device, but found at least two ",
                  "devices, ", kPretend, " and ", x.device(), "! (argument ", argument.name(), ")");
      return x;
    }
    auto known = std::find_if(storages.begin(), storages.end(), [&](auto& s) { return s.first.is_alias_of(x.storage()); });
    if (known == storages.end()) known = storages.insert(known, {x.storage(), shared(x.storage(), at::kCPU)});
    tensors.emplace_back(x, on(known->second, x));
    return tensors.back().second;
  }

  IValue to_host(const IValue& value, const c10::Argument& argument) {
    if (value.isTensor()) return to_host(value.toTensor(), argument, false);
    if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& x : value.toTensorVector()) list.push_back(to_host(x, argument, false));
      return list;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const std::optional<Tensor>& x : value.toOptionalTensorVector())
        list.push_back(x ? std::optional<Tensor>(to_host(*x, argument, indexing)) : std::nullopt);
      return list;
    }
    if (value.isDevice() && here(value.toDevice())) return at::Device(at::kCPU);
    TORCH_CHECK(!value.isGenerator() || here(value.toGenerator().device()), schema.name(),
                ": Expected a 'pretend' device type for generator but found 'cpu'");
    return value;
  }

  // Storages and shapes that the operation has changed are the device's too.
  void settle() {
    for (auto& [ours, theirs] : storages) {
      if (ours.data() == theirs.data() && ours.nbytes() == theirs.nbytes()) continue;
      ours.set_nbytes(theirs.nbytes());
      ours.set_data_ptr_noswap(Memory::renamed(theirs.set_data_ptr(c10::DataPtr(nullptr, at::kCPU)), kPretend));
    }
    for (auto& [ours, theirs] : tensors)
      if (ours.sizes() != theirs.sizes() || ours.strides() != theirs.strides())
        ours.unsafeGetTensorImpl()->set_sizes_and_strides(theirs.sizes(), theirs.strides(), theirs.storage_offset());
  }

  Tensor to_device(const Tensor& x) const {
    if (!x.defined()) return x;
    for (auto& [ours, theirs] : storages)
      if (theirs.is_alias_of(x.storage())) return on(ours, x);  // a view
    return on(shared(x.storage(), kPretend), x);
  }

  IValue to_device(const IValue& value) const {
    if (value.isTensor()) return to_device(value.toTensor());
    if (!value.isTensorList()) return value;
    c10::List<Tensor> list;
    for (const Tensor& x : value.toTensorVector()) list.push_back(to_device(x));
    return list;
  }
};

void run(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto &arguments = schema.arguments(), &returns = schema.returns();
  bool indexing = schema.name().find("index") != std::string::npos;
  Call call{schema, op.hasTag(at::Tag::pointwise), indexing, {}, {}};
  std::vector<IValue> given(stack->end() - arguments.size(), stack->end());
  auto first = stack->size() - given.size();
  for (size_t i = 0; i < given.size(); ++i) (*stack)[first + i] = call.to_host(given[i], arguments[i]);
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  call.settle();
  for (size_t r = 0; r < returns.size(); ++r) {
    IValue& value = (*stack)[first + r];
    const c10::AliasInfo* alias = returns[r].alias_info();
    if (alias && alias->isWrite()) {  // what was written to is what is returned
      auto same = [&](const c10::Argument& a) { return a.alias_info() && *a.alias_info() == *alias; };
      value = given[std::find_if(arguments.begin(), arguments.end(), same) - arguments.begin()];
    } else {
      value = call.to_device(value);
    }
  }
}

using torch::CppFunction;
TORCH_LIBRARY_IMPL(_, PrivateUse1, library) { library.fallback(CppFunction::makeFromBoxedFunction<&run>()); }

// ------------------------------------------------------------------ operations that PyTorch asks a device for

Tensor empty(IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout>, std::optional<at::Device>,
             std::optional<bool>, std::optional<at::MemoryFormat> format) {
  c10::DispatchKeySet key(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_generic(size, &memory, key, c10::dtype_or_default(type), format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<at::ScalarType> type, std::optional<at::Layout>,
                     std::optional<at::Device>, std::optional<bool>) {
  c10::DispatchKeySet key(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_strided_generic(size, stride, &memory, key, c10::dtype_or_default(type));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {  // the one way between devices
  host(to).copy_(host(from));
  return to;
}

Tensor& set_storage(Tensor& self, Storage storage, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return self;
}

Tensor& set_whole_storage(Tensor& self, Storage storage) {
  int64_t size = storage.nbytes() / self.dtype().itemsize();
  return set_storage(self, std::move(storage), 0, {size}, {1});
}

// These two PyTorch has under other names; the second without the shape of the bias.
c10::OperatorHandle find(const char* name) { return c10::Dispatcher::singleton().findSchemaOrThrow(name, ""); }

void convolution(const c10::OperatorHandle&, torch::jit::Stack* stack) { run(find("aten::convolution"), stack); }

void convolution_backward(const c10::OperatorHandle&, torch::jit::Stack* stack) {
  auto grad = stack->end() - 10;
  stack->insert(grad + 3, IValue(std::vector<int64_t>{grad->toTensor().size(1)}));
  run(find("aten::convolution_backward"), stack);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("_copy_from", &copy_from);
  library.impl("set_.source_Storage", &set_whole_storage);
  library.impl("set_.source_Storage_storage_offset", &set_storage);
  library.impl("convolution_overrideable", CppFunction::makeFromBoxedFunction<&convolution>());
  library.impl("convolution_backward_overrideable", CppFunction::makeFromBoxedFunction<&convolution_backward>());
}

// ------------------------------------------------------------------------------ the device, and autograd's questions

struct Guard final : c10::impl::DeviceGuardImplInterface {  // one device, one stream, nothing to wait for
  at::DeviceType type() const override { return at::kPrivateUse1; }
  at::Device exchangeDevice(at::Device) const override { return kPretend; }
  at::Device getDevice() const override { return kPretend; }
  void setDevice(at::Device) const override {}
  void uncheckedSetDevice(at::Device) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::Stream getStream(at::Device) const override { return c10::Stream(c10::Stream::DEFAULT, kPretend); }
  c10::Stream getDefaultStream(at::Device) const override { return getStream(kPretend); }
  c10::Stream exchangeStream(c10::Stream) const override { return getStream(kPretend); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
};
Hooks hooks;
const bool registered = (at::RegisterPrivateUse1HooksInterface(&hooks), true);

}  // namespace
