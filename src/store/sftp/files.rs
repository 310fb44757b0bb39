//! Data file and sidecar on the server: written beside their place, put into it whole.
//!
//! The data goes first; without the sidecar nobody sees it. SFTP has no locks, so the data itself
//! is the claim to a key: a plain rename refuses a name that is taken, and whoever comes second
//! waits for the first one's sidecar. Data whose sidecar does not come is what a crash left: it is
//! set aside. Between the two renames of a put lies one request, whose deadline is far below
//! [`ABANDONED_S`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use machine::Class;
use russh_sftp::client::error::Error as SftpError;
use russh_sftp::protocol::{FileAttributes, OpenFlags, Packet, StatusCode};

use super::flow::{Outflow, spawn};
use super::link::{Folder, Link, folder_of, sync_folder};
use super::session::{FSYNC, POSIX_RENAME, STATVFS, Session};
use crate::failure::{Failure, Outcome};
use crate::store::Put;
use crate::store::wire::run;

/// A file in the making, under a name that no reader looks at.
pub(super) struct Draft {
    pub session: Arc<Session>,
    path: String,
    handle: String,
    flow: Outflow,
    sealed: bool,
}

/// A file that is whole and durable, but not in its place. Gone when dropped, unless placed.
pub(super) struct Sealed {
    session: Arc<Session>,
    path: String,
    stamp: Stamp,
    placed: bool,
}

/// What tells a file from another of its name, as far as SFTP tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    size_bytes: u64,
    /// Seconds since 1970 by the server's clock.
    modified_s: u32,
}

impl Draft {
    pub async fn beside(link: &Link, session: Arc<Session>, target: &str) -> Outcome<Draft> {
        let folder = folder_of(target, link.root());
        let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::EXCLUDE;
        for _ in 0..2 {
            link.make_folder(&session, folder).await?;
            let path = draft_path(target)?;
            if let Some(handle) = session.open_file(&path, flags).await? {
                let flow = Outflow::new(Arc::clone(&session), handle.clone(), path.clone());
                return Ok(Draft {
                    session,
                    path,
                    handle,
                    flow,
                    sealed: false,
                });
            }
            // Somebody removed the folder since we saw it.
            link.forget();
        }
        let message = format!("{folder}: the folder comes and goes");
        Err(Failure::new(Class::NotFound, message))
    }

    /// Blocks until the bytes are on their way.
    pub fn write(&mut self, bytes: &[u8]) -> Outcome<()> {
        self.flow.write(bytes).map_err(|f| self.why(f))
    }

    /// Blocks until the server has everything, for good.
    pub fn seal(mut self) -> Outcome<Sealed> {
        self.flow.drain().map_err(|f| self.why(f))?;
        let stamp = run(self.settle()).map_err(|f| self.why(f))?;
        self.sealed = true;
        Ok(Sealed {
            session: Arc::clone(&self.session),
            path: self.path.clone(),
            stamp,
            placed: false,
        })
    }

    async fn settle(&self) -> Outcome<Stamp> {
        let Draft {
            session,
            path,
            handle,
            ..
        } = self;
        if session.has(FSYNC) {
            let synced = session.sftp.fsync(handle.as_str());
            session.ask(path, synced).await?;
        }
        // Some servers say only now that they could not write.
        let closed = session.sftp.close(handle.as_str());
        session.ask(path, closed).await?;
        let found = session.ask(path, session.sftp.stat(path)).await?;
        let stamp = Stamp::of(&found.attrs);
        let sent_bytes = self.flow.sent_bytes();
        if stamp.size_bytes != sent_bytes {
            let found = stamp.size_bytes;
            let message = format!("{path} has {found} bytes on the server instead of {sent_bytes}");
            return Err(Failure::new(Class::Corrupt, message));
        }
        Ok(stamp)
    }

    fn why(&self, failure: Failure) -> Failure {
        match failure.class {
            Class::Internal => run(full_or(&self.session, &self.path, failure)),
            _ => failure,
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.sealed {
            let handle = std::mem::take(&mut self.handle);
            discard(&self.session, &self.path, Some(handle));
        }
    }
}

impl Drop for Sealed {
    fn drop(&mut self) {
        if !self.placed {
            discard(&self.session, &self.path, None);
        }
    }
}

/// What cannot be removed now is swept by a listing, one day.
fn discard(session: &Arc<Session>, path: &str, handle: Option<String>) {
    if !session.alive() {
        return;
    }
    let (session, path) = (Arc::clone(session), path.to_owned());
    drop(spawn(async move {
        if let Some(handle) = handle {
            session.close(handle).await;
        }
        let removed = session.sftp.remove(path.as_str());
        let _swept_later = session.ask(&path, removed).await;
    }));
}

impl Stamp {
    fn of(found: &FileAttributes) -> Stamp {
        Stamp {
            size_bytes: found.size.unwrap_or(0),
            modified_s: found.mtime.unwrap_or(0),
        }
    }
}

/// An object on its way into place.
pub(super) struct Pair {
    pub data: Sealed,
    pub sidecar: Sealed,
}

impl Pair {
    /// Puts both into their places; `key` is for messages.
    pub async fn publish(mut self, key: &str, path: &str, mode: Put) -> Outcome<()> {
        let session = Arc::clone(&self.data.session);
        let folder = Folder::open(&session, folder_of(path, ".")).await;
        match mode {
            Put::Create => self.claim(key, path).await?,
            Put::Replace => self.replace(path).await?,
        }
        if let Some(folder) = &folder {
            folder.sync(&session).await?;
        }
        self.show(key, path, mode).await?;
        if let Some(folder) = folder {
            let synced = folder.sync(&session).await;
            folder.close(&session).await;
            synced?;
        }
        Ok(())
    }

    async fn claim(&mut self, key: &str, path: &str) -> Outcome<()> {
        let session = Arc::clone(&self.data.session);
        let began = Instant::now();
        while !self.data.place(path).await? {
            if session.stat(&sidecar_path(path)).await?.is_some() {
                return Err(exists(key));
            }
            let Some(found) = session.stat(path).await? else {
                continue;
            };
            let found = Stamp::of(&found);
            let age_s = self.data.stamp.modified_s.saturating_sub(found.modified_s);
            if age_s >= ABANDONED_S || began.elapsed() >= PATIENCE {
                set_aside(&session, key, path, found).await?;
                continue;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// A crash half way leaves no object, which the caller repeats, rather than new data under old
    /// metadata.
    async fn replace(&mut self, path: &str) -> Outcome<()> {
        let session = Arc::clone(&self.data.session);
        let sidecar = sidecar_path(path);
        session
            .seek(&sidecar, session.sftp.remove(&sidecar))
            .await?;
        self.data.place_over(path).await
    }

    /// Makes the data an object.
    async fn show(&mut self, key: &str, path: &str, mode: Put) -> Outcome<()> {
        let session = Arc::clone(&self.data.session);
        let sidecar = sidecar_path(path);
        for _ in 0..RACES_MAX {
            if self.sidecar.place(&sidecar).await? {
                let found = session.stat(path).await?.map(|found| Stamp::of(&found));
                return match found == Some(self.data.stamp) {
                    true => Ok(()),
                    false => Err(changed(key)),
                };
            }
            if mode == Put::Create {
                break;
            }
            // Of another who replaces it: the data is ours by now.
            session
                .seek(&sidecar, session.sftp.remove(&sidecar))
                .await?;
        }
        Err(changed(key))
    }
}

impl Sealed {
    /// False where the name is taken.
    async fn place(&mut self, target: &str) -> Outcome<bool> {
        let session = &self.session;
        // Where there is a rename that replaces, the plain one refuses.
        if !session.has(POSIX_RENAME) && session.stat(target).await?.is_some() {
            return Ok(false);
        }
        let renamed = session.sftp.rename(self.path.as_str(), target).await;
        match renamed {
            Ok(_) => {
                self.placed = true;
                Ok(true)
            }
            Err(SftpError::Status(status))
                if status.status_code != StatusCode::NoSuchFile
                    && session.stat(target).await?.is_some() =>
            {
                Ok(false)
            }
            Err(e) => {
                let failure = session.failure(&e, target);
                Err(full_or(session, target, failure).await)
            }
        }
    }

    async fn place_over(&mut self, target: &str) -> Outcome<()> {
        let session = &self.session;
        if session.has(POSIX_RENAME) {
            let words = [self.path.as_str(), target].map(packed).concat();
            let renamed = session.sftp.extended(POSIX_RENAME, words);
            answered(session.ask(target, renamed).await?, session, target)?;
            self.placed = true;
            return Ok(());
        }
        session.seek(target, session.sftp.remove(target)).await?;
        match self.place(target).await? {
            true => Ok(()),
            false => Err(changed(target)),
        }
    }
}

/// Moves data out of the way whose writer is gone, and back if it is another's than was seen.
async fn set_aside(session: &Arc<Session>, key: &str, path: &str, seen: Stamp) -> Outcome<()> {
    let aside = draft_path(path)?;
    let moved = session.sftp.rename(path, aside.as_str());
    if session.seek(path, moved).await?.is_none() {
        return Ok(());
    }
    let found = session.stat(&aside).await?.map(|found| Stamp::of(&found));
    if found == Some(seen) {
        return session
            .ask(&aside, session.sftp.remove(&aside))
            .await
            .map(drop);
    }
    let back = session.sftp.rename(aside.as_str(), path);
    session.ask(path, back).await?;
    Err(changed(key))
}

/// Removes an object, sidecar first. Where the data cannot go, the sidecar comes back: what
/// somebody locked must not vanish from every listing. False where there was nothing.
pub(super) async fn remove(session: &Session, path: &str) -> Outcome<bool> {
    let (sidecar, aside) = (sidecar_path(path), draft_path(path)?);
    let hidden = session.sftp.rename(sidecar.as_str(), aside.as_str());
    let hidden = session.seek(&sidecar, hidden).await?.is_some();
    let removed = session.seek(path, session.sftp.remove(path)).await;
    if removed.is_err() && hidden {
        let back = session.sftp.rename(aside.as_str(), sidecar.as_str());
        session.ask(&sidecar, back).await?;
    }
    let removed = removed?.is_some();
    if hidden {
        session.ask(&aside, session.sftp.remove(&aside)).await?;
    }
    if hidden || removed {
        sync_folder(session, folder_of(path, ".")).await?;
    }
    Ok(hidden || removed)
}

/// SFTP has no word for a full disk; servers that tell how much room there is do tell it.
async fn full_or(session: &Session, path: &str, failure: Failure) -> Failure {
    if failure.class != Class::Internal || !session.has(STATVFS) {
        return failure;
    }
    let folder = folder_of(path, ".");
    match session.ask(folder, session.sftp.statvfs(folder)).await {
        Ok(room) if room.blocks_avail == 0 || room.inodes_avail == 0 => {
            let message = format!("{}: no room left on the server's disk", failure.message);
            Failure::new(Class::Quota, message).hint("make room there")
        }
        Ok(_) | Err(_) => failure,
    }
}

fn answered(packet: Packet, session: &Session, path: &str) -> Outcome<()> {
    match packet {
        Packet::Status(status) if status.status_code == StatusCode::Ok => Ok(()),
        Packet::Status(status) => Err(session.failure(&SftpError::Status(status), path)),
        _ => Err(session.failure(&SftpError::UnexpectedPacket, path)),
    }
}

/// A string of the protocol: its length and its bytes.
fn packed(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes(), text.as_bytes()].concat()
}

pub(super) fn exists(key: &str) -> Failure {
    Failure::new(Class::Conflict, format!("{key} already exists"))
}

fn changed(key: &str) -> Failure {
    let message = format!("{key}: somebody else writes it at the same time");
    Failure::new(Class::Conflict, message)
}

pub(super) fn sidecar_path(path: &str) -> String {
    format!("{path}{}", crate::store::sidecar::END)
}

fn draft_path(target: &str) -> Outcome<String> {
    let mut random = [0; 8];
    getrandom::fill(&mut random)
        .map_err(|e| Failure::new(Class::Internal, format!("no randomness: {e}")))?;
    let name = format!("{DRAFT_START}{}{DRAFT_END}", hex::encode(random));
    Ok(match target.rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/{name}"),
        None => name,
    })
}

/// What is being written, or was when somebody crashed.
pub(super) fn is_draft(name: &str) -> bool {
    name.starts_with(DRAFT_START) && name.ends_with(DRAFT_END)
}

const DRAFT_START: &str = ".draft-";
const DRAFT_END: &str = ".tmp";

/// Data that was written so much earlier than ours, by the server's clock, has no writer.
const ABANDONED_S: u32 = 600;
/// So long a sidecar is waited for: more than twice the deadline of a request.
const PATIENCE: Duration = Duration::from_secs(150);
const LOOK_EVERY: Duration = Duration::from_millis(50);
const RACES_MAX: u32 = 3;
