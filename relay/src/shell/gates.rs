//! Gates before the many things that one task waits for: each is looked at only when it has called, not whenever another
//! one did. A call is woken a hundred times a second, and nearly always by the same two of its ten sources.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// Which gates have been called at; one bit each.
#[derive(Debug)]
struct Called {
    bits: AtomicU32,
    task: Waker,
}

/// The gates of one task.
#[derive(Debug)]
pub struct Gates {
    called: Arc<Called>,
    next: u32,
}

/// One source's gate. It must be passed by the task that made it.
#[derive(Debug)]
pub struct Gate {
    bit: u32,
    called: Arc<Called>,
    waker: Waker,
}

struct Bell {
    bit: u32,
    called: Arc<Called>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.called.bits.fetch_or(self.bit, Ordering::Release);
        self.called.task.wake_by_ref();
    }
}

impl Gates {
    /// For the task that awaits this.
    pub async fn of_this_task() -> Gates {
        let task = poll_fn(|context| Poll::Ready(context.waker().clone())).await;
        Gates { called: Arc::new(Called { bits: AtomicU32::new(0), task }), next: 1 }
    }

    /// Another gate; the first 32 have a bit of their own, and more than that no task has.
    pub fn gate(&mut self) -> Gate {
        let bit = self.next;
        self.next = self.next.rotate_left(1);
        // Nobody has called yet, but nobody knows either that there is somebody to be called.
        self.called.bits.fetch_or(bit, Ordering::Relaxed);
        let called = self.called.clone();
        Gate { bit, waker: Waker::from(Arc::new(Bell { bit, called: called.clone() })), called }
    }
}

impl Gate {
    /// What `source` gives, which is asked once at first and then only after it has called.
    pub async fn pass<T>(&self, mut source: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
        poll_fn(|_| self.poll(&mut source)).await
    }

    /// As `pass`, where several gates are passed in one go.
    pub fn poll<T>(&self, source: &mut impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        if self.called.bits.load(Ordering::Acquire) & self.bit == 0 {
            return Poll::Pending;
        }
        // Before it is asked, so that a call meanwhile is not lost.
        self.called.bits.fetch_and(!self.bit, Ordering::AcqRel);
        let given = source(&mut Context::from_waker(&self.waker));
        if given.is_ready() {
            // There may be more, and nobody calls for that.
            self.open();
        }
        given
    }

    /// Has the source asked once more, although it did not call.
    pub fn open(&self) {
        self.called.bits.fetch_or(self.bit, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn everything_that_is_sent_arrives_and_a_silent_source_is_asked_once() {
        let mut gates = Gates::of_this_task().await;
        let (busy_gate, silent_gate) = (gates.gate(), gates.gate());
        let (sender, mut busy) = mpsc::channel(4);
        let (_kept, mut silent) = mpsc::channel::<()>(1);
        tokio::spawn(async move {
            for n in 0..1000_u32 {
                sender.send(n).await.unwrap();
                if n % 100 == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
        let (mut got, mut asked) = (0, 0);
        loop {
            tokio::select! {
                n = busy_gate.pass(|context| busy.poll_recv(context)) => match n {
                    Some(n) => {
                        assert_eq!(n, got);
                        got += 1;
                    }
                    None => break,
                },
                _ = silent_gate.pass(|context| {
                    asked += 1;
                    silent.poll_recv(context)
                }) => {}
            }
        }
        assert_eq!((got, asked), (1000, 1));
    }
}
