//! A requester's way through DMA remapping.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;

use amdvi_core::{Fabric, InFlight, Requester, Slot};
use amdvi_regs::{DeviceId, PhysMemory};

use crate::iotlb::Iotlb;
use crate::outcome::{Answer, Answered, Failed, Failure, Mapped, Piece};
use crate::request::{Access, Pasid};
use crate::state::State;

/// The DMA side of one requester handle: one function and one thread.
///
/// Looks in its own cache, then in the guest's tables; where a walk is long (guest tables, accessed bits), in
/// the shared IOTLB before them. What it answers is as old as the last invalidation that it could know of when the operation began, never older.
pub struct Mapper {
    requester: Requester,
    state: State,
}

impl Mapper {
    /// Blocks that a handle keeps by default: 64 KiB, enough for 16 MiB in pages of 4 KiB.
    pub const DEFAULT_ENTRIES: usize = 4096;

    /// A handle for `device_id` that keeps up to `entries` blocks of its own (16 bytes each, rounded
    /// up to a power of two between 16 and 2^24). `va_bits` is the address width that the IVRS
    /// states, see [`WalkContext::va_bits`](crate::WalkContext::va_bits).
    ///
    /// Its [`slot`](Self::slot) must be known to whoever invalidates and drains.
    pub fn new(
        fabric: Arc<Fabric>,
        iotlb: Arc<Iotlb>,
        device_id: DeviceId,
        entries: usize,
        va_bits: u8,
    ) -> Self {
        Self {
            requester: Requester::new(fabric, device_id),
            state: State::new(iotlb, entries, va_bits),
        }
    }

    /// The shared part of the handle.
    pub fn slot(&self) -> &Arc<Slot> {
        self.requester.slot()
    }

    /// Translates the beginning of an untranslated DMA request of `len` bytes at `iova`, without a
    /// PASID.
    ///
    /// Ask again for what lies behind the result ([`pieces`](Self::pieces) does that). A length of 0 is
    /// checked like one byte. A hit takes no lock, writes nothing shared and allocates nothing.
    ///
    /// # Errors
    ///
    /// [`Failed`] if the access must not happen.
    #[inline(always)]
    pub fn translate<M: PhysMemory + ?Sized>(
        &mut self,
        memory: &M,
        iova: u64,
        len: u64,
        access: Access,
    ) -> Result<Mapped<'_>, Failed<'_>> {
        self.translate_for(memory, None, iova, len, access)
    }

    /// As [`translate`](Self::translate), for a request with or without a PASID. A hit costs the same.
    ///
    /// # Errors
    ///
    /// [`Failed`] if the access must not happen.
    #[inline(always)]
    pub fn translate_for<M: PhysMemory + ?Sized>(
        &mut self,
        memory: &M,
        pasid: Option<Pasid>,
        iova: u64,
        len: u64,
        access: Access,
    ) -> Result<Mapped<'_>, Failed<'_>> {
        let in_flight = self.requester.enter();
        match self
            .state
            .resolve(&in_flight, memory, pasid, iova, len, access)
        {
            Ok(piece) => Ok(Mapped {
                piece,
                _in_flight: in_flight,
            }),
            Err(failure) => Err(Failed { failure, in_flight }),
        }
    }

    /// Checks a request whose address the device has got from an ATS answer (PCIe AT = translated)
    /// and that stays as it is.
    ///
    /// # Errors
    ///
    /// [`Failed`] if the DTE does not let the device use ATS, among others.
    pub fn translated<M: PhysMemory + ?Sized>(
        &mut self,
        memory: &M,
        pasid: Option<Pasid>,
        gpa: u64,
        len: u64,
        access: Access,
    ) -> Result<Mapped<'_>, Failed<'_>> {
        let in_flight = self.requester.enter();
        match self
            .state
            .translated(&in_flight, memory, pasid, gpa, len, access)
        {
            Ok(piece) => Ok(Mapped {
                piece,
                _in_flight: in_flight,
            }),
            Err(failure) => Err(Failed { failure, in_flight }),
        }
    }

    /// Answers an ATS translation request for the page around `iova`. `access` is what the device
    /// would like to do: anything but [`Access::Read`] asks for W (NW=0 in PCIe's terms) and sets the
    /// page's dirty bit if W is granted and such bits are maintained.
    ///
    /// # Errors
    ///
    /// [`Failed`] if the request itself is not allowed or the tables can't be read; what tables and
    /// permissions deny is an [`Answer`].
    pub fn translation_request<M: PhysMemory + ?Sized>(
        &mut self,
        memory: &M,
        pasid: Option<Pasid>,
        iova: u64,
        access: Access,
    ) -> Result<Answered<'_>, Failed<'_>> {
        let in_flight = self.requester.enter();
        match self.state.answer(&in_flight, memory, pasid, iova, access) {
            Ok(answer) => Ok(Answered {
                answer,
                _in_flight: in_flight,
            }),
            Err(failure) => Err(Failed { failure, in_flight }),
        }
    }

    /// Begins an operation of several translations.
    pub fn enter(&mut self) -> Operation<'_> {
        Operation {
            in_flight: self.requester.enter(),
            state: &mut self.state,
        }
    }

    /// [`pieces_for`](Self::pieces_for) without a PASID.
    ///
    /// # Errors
    ///
    /// The [`Failed`] at which it stopped.
    pub fn pieces<M: PhysMemory + ?Sized>(
        &mut self,
        memory: &M,
        iova: u64,
        len: u64,
        access: Access,
        access_piece: impl FnMut(&Piece),
    ) -> Result<(), Failed<'_>> {
        self.pieces_for(memory, None, iova, len, access, access_piece)
    }

    /// Hands `len` bytes at `iova` to `access_piece`, translated piece by piece, in order.
    ///
    /// Stops at the first failure, so one transaction has at most one event; what was handed out
    /// before has happened, as on a bus. A request that reaches beyond the address space fails before
    /// anything is handed out. The whole transaction is one operation that a COMPLETION_WAIT waits
    /// for, but each piece is translated by what is known when its turn comes.
    ///
    /// # Errors
    ///
    /// The [`Failed`] at which it stopped.
    pub fn pieces_for<M: PhysMemory + ?Sized>(
        &mut self,
        memory: &M,
        pasid: Option<Pasid>,
        mut iova: u64,
        mut len: u64,
        access: Access,
        mut access_piece: impl FnMut(&Piece),
    ) -> Result<(), Failed<'_>> {
        let in_flight = self.requester.enter();
        loop {
            match self
                .state
                .resolve(&in_flight, memory, pasid, iova, len, access)
            {
                Ok(piece) => {
                    access_piece(&piece);
                    len -= piece.len;
                    if len == 0 {
                        return Ok(());
                    }
                    // The first piece was refused unless all of them fit into the address space.
                    iova += piece.len;
                }
                Err(failure) => return Err(Failed { failure, in_flight }),
            }
        }
    }
}

/// Several translations of one handle under one guard: an operation of a device that is more than one
/// transaction, such as the handling of a queue.
///
/// COMPLETION_WAIT waits for all of it, so it must be short. Each translation is as new as the
/// invalidations that are known when it is asked for.
#[derive(Debug)]
pub struct Operation<'a> {
    in_flight: InFlight<'a>,
    state: &'a mut State,
}

impl Operation<'_> {
    /// As [`Mapper::translate`]; the memory may be accessed for as long as the operation lives.
    ///
    /// # Errors
    ///
    /// [`Failure`] if the access must not happen. Log its event before the operation ends.
    #[inline]
    pub fn translate<M: PhysMemory + ?Sized>(
        &mut self,
        memory: &M,
        iova: u64,
        len: u64,
        access: Access,
    ) -> Result<Piece, Box<Failure>> {
        self.translate_for(memory, None, iova, len, access)
    }

    /// As [`Mapper::translate_for`].
    ///
    /// # Errors
    ///
    /// As [`translate`](Self::translate).
    #[inline]
    pub fn translate_for<M: PhysMemory + ?Sized>(
        &mut self,
        memory: &M,
        pasid: Option<Pasid>,
        iova: u64,
        len: u64,
        access: Access,
    ) -> Result<Piece, Box<Failure>> {
        self.state
            .resolve(&self.in_flight, memory, pasid, iova, len, access)
    }

    /// As [`Mapper::translated`].
    ///
    /// # Errors
    ///
    /// As [`translate`](Self::translate).
    pub fn translated<M: PhysMemory + ?Sized>(
        &mut self,
        memory: &M,
        pasid: Option<Pasid>,
        gpa: u64,
        len: u64,
        access: Access,
    ) -> Result<Piece, Box<Failure>> {
        self.state
            .translated(&self.in_flight, memory, pasid, gpa, len, access)
    }

    /// As [`Mapper::translation_request`].
    ///
    /// # Errors
    ///
    /// As [`translate`](Self::translate).
    pub fn translation_request<M: PhysMemory + ?Sized>(
        &mut self,
        memory: &M,
        pasid: Option<Pasid>,
        iova: u64,
        access: Access,
    ) -> Result<Answer, Box<Failure>> {
        self.state
            .answer(&self.in_flight, memory, pasid, iova, access)
    }

    /// The DeviceID that the requests carry.
    pub fn device_id(&self) -> DeviceId {
        self.in_flight.device_id()
    }
}

impl Clone for Mapper {
    /// Another handle for the same function, with a slot and an empty cache of its own.
    fn clone(&self) -> Self {
        Self {
            requester: self.requester.clone(),
            state: self.state.fresh(),
        }
    }
}

impl fmt::Debug for Mapper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapper")
            .field("slot", self.slot())
            .field("state", &self.state)
            .finish()
    }
}
