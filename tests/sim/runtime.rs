//! The one tokio runtime that every server of the local world lives on.
//!
//! Each `#[tokio::test]` has a runtime of its own that ends with the test. A world may be shared by several tests,
//! so its servers and its connections must not be tied to the runtime of whichever test came first.

use std::future::Future;
use std::sync::OnceLock;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use crate::error::{Context, Result};

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        #[allow(clippy::expect_used, reason = "a process that cannot start two threads cannot do anything else either")]
        Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("ihuza-world")
            .enable_all()
            .build()
            .expect("the world needs two threads: raise the process limit (ulimit -u)")
    })
}

/// Starts `future` beside the caller. It ends when it is done, aborted, or the process ends.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    runtime().spawn(future)
}

/// Runs `future` on the world's runtime and waits for it, so that what it opens outlives the caller's runtime.
pub async fn on<T, F>(future: F) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    spawn(future).await.context("a task of the local world ended early")?
}

/// Runs blocking work (files, child processes) away from the async threads.
pub async fn blocking<T, F>(work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T> + Send + 'static,
{
    runtime().spawn_blocking(work).await.context("a blocking task of the local world ended early")?
}
