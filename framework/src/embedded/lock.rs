//! Files whose lock says who starts and who uses a cluster.
//!
//! Each user of a cluster holds `users.lock` shared. Starting and leaving happen under `start.lock`, one at a time: so
//! who can take `users.lock` for itself while it holds `start.lock` is the last one. The operating system gives the
//! locks of a killed process back.

use std::{
    fs::{File, OpenOptions, TryLockError},
    path::Path,
    time::{Duration, Instant},
};

use super::{EmbeddedError, account, error::Tried, process, process::GivenUp};

/// A held lock. It is given back explicitly, because a child that was forked and has not yet become another program has
/// a copy of the file, and closing ours would leave the lock with it for that moment.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

/// Takes a lock for this user of the cluster alone, waiting for at most `limit`, or until the start that it is part of is given up.
pub(super) fn exclusive(
    path: &Path,
    limit: Duration,
    announce: fn(&str),
    given_up: &GivenUp,
) -> Result<Lock, EmbeddedError> {
    let file = open(path)?;
    let begun = Instant::now();
    let mut told = false;
    let mut refused = None;
    let held = process::wait_until(begun + limit, || match file.try_lock() {
        Ok(()) => true,
        Err(TryLockError::WouldBlock) => {
            if !told && begun.elapsed() > Duration::from_secs(2) {
                told = true;
                announce("waiting for another process that starts or stops PostgreSQL here");
            }
            given_up.is_set()
        }
        Err(TryLockError::Error(error)) => {
            refused = Some(error);
            true
        }
    });
    given_up.check().tried("go on with the start of PostgreSQL")?;
    match refused {
        Some(error) => Err(error).tried(format_args!("lock {}", path.display())),
        None if held => Ok(Lock(file)),
        None => Err(EmbeddedError::Timeout {
            what: format!("another process still holds {}", path.display()),
            waited: begun.elapsed(),
            next: "wait until it has started or stopped PostgreSQL, or end it".into(),
        }),
    }
}

/// Takes a lock together with others. Under `start.lock` nobody holds it alone, so this does not wait.
pub(super) fn shared(path: &Path) -> Result<Lock, EmbeddedError> {
    let file = open(path)?;
    file.lock_shared().tried(format_args!("lock {}", path.display()))?;
    Ok(Lock(file))
}

impl Lock {
    /// Turns a shared lock into one's own. On `false` the lock is gone: the system gives it up before it tries.
    pub(super) fn try_alone(&self) -> bool {
        self.0.try_lock().is_ok()
    }
}

fn open(path: &Path) -> Result<File, EmbeddedError> {
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
    let file = file.tried(format_args!("open {}", path.display()))?;
    account::belongs_like_its_folder(path)?;
    Ok(file)
}
