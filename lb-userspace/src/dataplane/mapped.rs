//! An array map as memory: what would take a system call an element takes a copy.
//!
//! Needs `BPF_F_MMAPABLE`. The kernel reads the same memory at the same time, so nothing here hands out references; a
//! caller writes only where no published service points.

use std::{
    marker::PhantomData,
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{Ordering, fence},
};

use anyhow::{Context as _, Result};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A mapping of all `length` elements of an array map.
#[derive(Debug)]
pub struct Mapped<T> {
    base: NonNull<T>,
    length: u32,
    _elements: PhantomData<T>,
}

// SAFETY: a mapping belongs to the process, not to a thread; writes need `&mut self`.
unsafe impl<T: Send> Send for Mapped<T> {}

impl<T: FromBytes + IntoBytes + Immutable + Copy> Mapped<T> {
    // Array maps space their elements 8 bytes apart at least (`kernel/bpf/arraymap.c`).
    const STRIDE_IS_SIZE: () = assert!(size_of::<T>().is_multiple_of(8));

    /// Maps an array map with `length` elements of type `T`.
    pub fn new(map: impl AsFd, length: u32) -> Result<Self> {
        const { Self::STRIDE_IS_SIZE };
        let bytes = NonZeroUsize::new(length as usize * size_of::<T>()).context("mapping an empty array")?;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let base = unsafe {
            mmap(None, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, map, 0)
        }
        .context("mapping a BPF array into memory")?;
        Ok(Self { base: base.cast(), length, _elements: PhantomData })
    }

    /// Elements.
    pub const fn len(&self) -> u32 {
        self.length
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    fn check(&self, offset: u32, length: usize) -> usize {
        let start = offset as usize;
        assert!(
            start + length <= self.length as usize,
            "{offset}+{length} is outside {} elements",
            self.length
        );
        start
    }

    /// Copies elements out.
    ///
    /// # Panics
    ///
    /// Where they are outside the array.
    pub fn read(&self, offset: u32, length: u32) -> Vec<T> {
        let start = self.check(offset, length as usize);
        // SAFETY: in bounds; any bytes are a valid `T`; volatile because the kernel may write the same memory.
        (start..start + length as usize).map(|i| unsafe { self.base.add(i).read_volatile() }).collect()
    }

    /// Copies elements in. They are in memory before anything that the caller publishes afterwards.
    ///
    /// # Panics
    ///
    /// Where they are outside the array.
    pub fn write(&mut self, offset: u32, elements: &[T]) {
        let start = self.check(offset, elements.len());
        for (i, element) in elements.iter().enumerate() {
            // SAFETY: in bounds, exclusive among user space by `&mut self`.
            unsafe { self.base.add(start + i).write_volatile(*element) };
        }
        fence(Ordering::Release);
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, once.
        let result = unsafe { munmap(self.base.cast(), self.length as usize * size_of::<T>()) };
        if let Err(error) = result {
            log::error!("unmapping a BPF array: {error}");
        }
    }
}
