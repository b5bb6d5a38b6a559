//! The rtnetlink socket of a host, through which everything about its network is changed.
//!
//! Every request goes through a socket that was opened on the host's own thread: nothing here may reach the machine's
//! own network.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::Result;
use rtnetlink::Handle;
use tokio::runtime::Runtime;

use crate::host::Host;

/// A netlink socket of a host with the runtime that drives it.
struct Socket {
    runtime: Runtime,
    handle: Handle,
}

thread_local! {
    /// Made at the first request on a host's thread, where it belongs to that host's network.
    static SOCKET: RefCell<Option<Rc<Socket>>> = const { RefCell::new(None) };
}

/// Closes the calling host thread's socket. To be called before the thread ends: a runtime must not be dropped among
/// the thread's other local values.
pub(crate) fn forget_socket() {
    SOCKET.with_borrow_mut(Option::take);
}

/// Runs one rtnetlink exchange, or several in turn, on a host's thread.
pub(crate) fn request<R: Send, E: std::error::Error + Send + Sync + 'static>(
    host: &Host,
    exchange: impl AsyncFnOnce(Handle) -> Result<R, E> + Send,
) -> Result<R> {
    host.run(|| {
        let socket = SOCKET.with_borrow_mut(|slot| -> Result<Rc<Socket>> {
            if let Some(socket) = slot {
                return Ok(socket.clone());
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
            let guard = runtime.enter();
            let (connection, handle, _) = rtnetlink::new_connection()?;
            runtime.spawn(connection);
            drop(guard);
            Ok(slot.insert(Rc::new(Socket { runtime, handle })).clone())
        })?;
        Ok(socket.runtime.block_on(exchange(socket.handle.clone()))?)
    })
}
