//! What went wrong while the local world was built or spoken to, in words that say what to do.

use std::error::Error;
use std::fmt;

pub type Result<T, E = Trouble> = std::result::Result<T, E>;

/// A failure of the local world. `Display` is one sentence; `Debug` (and so `unwrap`) prints the causes too.
pub struct Trouble {
    what: String,
    cause: Option<Box<dyn Error + Send + Sync>>,
}

impl Trouble {
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), cause: None }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl fmt::Debug for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        let mut cause = self.source();
        while let Some(error) = cause {
            write!(f, "\n  because: {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl Error for Trouble {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as &(dyn Error + 'static))
    }
}

/// Adds what we were doing to an error of somebody else's.
pub trait Context<T> {
    fn context(self, what: impl Into<String>) -> Result<T>;
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl Into<String>) -> Result<T> {
        self.map_err(|cause| Trouble { what: what.into(), cause: Some(cause.into()) })
    }
}
