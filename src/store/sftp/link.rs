//! The way to the server: one session for all threads, made anew when it is gone.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use machine::Class;
use russh_sftp::protocol::{FileAttributes, OpenFlags};

use super::session::Session;
use crate::config::Sftp;
use crate::failure::{Failure, Outcome};
use crate::store::choose::Missing;

pub(super) struct Link {
    config: Sftp,
    missing: Missing,
    current: tokio::sync::Mutex<Current>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Current {
    session: Option<Arc<Session>>,
    /// Of the last attempt, for those who waited for its end.
    failed: Option<(Instant, Failure)>,
}

/// What is on the server, as far as we saw it.
#[derive(Default)]
struct Known {
    root: bool,
    folders: HashSet<String>,
}

impl Link {
    pub fn new(config: Sftp, missing: Missing) -> Link {
        Link {
            config,
            missing,
            current: tokio::sync::Mutex::default(),
            known: Mutex::default(),
        }
    }

    pub fn name(&self) -> String {
        let Sftp { username, .. } = &self.config;
        let server = super::session::server(&self.config);
        format!("sftp storage {username}@{server}/{}", self.config.prefix)
    }

    /// The folder that everything is in; relative to the one that the login leads to.
    pub fn root(&self) -> &str {
        match self.config.prefix.as_str() {
            "" => ".",
            prefix => prefix,
        }
    }

    pub fn path(&self, key: &str) -> String {
        match self.config.prefix.as_str() {
            "" => key.to_owned(),
            prefix => format!("{}/{key}", prefix.trim_end_matches('/')),
        }
    }

    /// Does what can be done twice: again, on a new connection, where this one breaks.
    pub async fn with<T>(&self, work: impl AsyncFn(Arc<Session>) -> Outcome<T>) -> Outcome<T> {
        let mut pause = PAUSE_FIRST;
        for _ in 1..ATTEMPTS {
            let done = match self.session().await {
                Ok(session) => work(session).await,
                Err(failure) => Err(failure),
            };
            match done {
                Err(failure) if passing(&failure) => {}
                done => return done,
            }
            tokio::time::sleep(pause).await;
            pause *= 4;
        }
        work(self.session().await?).await
    }

    pub async fn session(&self) -> Outcome<Arc<Session>> {
        let asked = Instant::now();
        let mut current = self.current.lock().await;
        if let Some(session) = current.session.as_ref().filter(|s| s.alive()) {
            return Ok(Arc::clone(session));
        }
        match &current.failed {
            Some((at, failure)) if *at >= asked => return Err(failure.clone()),
            Some(_) | None => {}
        }
        current.session = None;
        match Session::open(&self.config).await {
            Ok(session) => {
                let session = Arc::new(session);
                current.session = Some(Arc::clone(&session));
                Ok(session)
            }
            Err(failure) => {
                current.failed = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    /// Doubt about the root turns every absence into an error: an unmounted disk must not look
    /// like an empty store. Who fills the store makes the root once.
    pub async fn confirm_root(&self, session: &Session) -> Outcome<()> {
        let root = self.root();
        match session.stat(root).await? {
            Some(found) if is_folder(&found) => {}
            Some(_) => {
                let message = format!("{}: '{root}' is not a directory", self.name());
                return Err(Failure::new(Class::Config, message));
            }
            None if self.missing == Missing::Create && !self.lock().root => {
                self.make_above(session, root).await?;
            }
            None => {
                let message = format!("{}: directory '{root}' does not exist", self.name());
                return Err(
                    Failure::new(Class::Config, message).hint("is its file system mounted?")
                );
            }
        }
        self.lock().root = true;
        Ok(())
    }

    /// Makes a folder below the root and those above it, unless they are known to be there.
    pub async fn make_folder(&self, session: &Session, path: &str) -> Outcome<()> {
        if path == self.root() {
            return self.confirm_root(session).await;
        }
        if self.lock().folders.contains(path) {
            return Ok(());
        }
        if session.stat(path).await?.is_none() {
            Box::pin(self.make_folder(session, folder_of(path, self.root()))).await?;
            make(session, path).await?;
        }
        self.lock().folders.insert(path.to_owned());
        Ok(())
    }

    /// What was known of folders is no longer so.
    pub fn forget(&self) {
        self.lock().folders.clear();
    }

    /// The root and what is above it.
    async fn make_above(&self, session: &Session, root: &str) -> Outcome<()> {
        let ends = root.match_indices('/').map(|(at, _)| at);
        for end in ends.filter(|end| *end > 0).chain([root.len()]) {
            let path = root.get(..end).unwrap_or(root);
            if session.stat(path).await?.is_none() {
                make(session, path).await?;
            }
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes one folder, durably. Somebody else may have been faster.
async fn make(session: &Session, path: &str) -> Outcome<()> {
    let made = session.sftp.mkdir(path, FileAttributes::empty());
    if let Err(failure) = session.ask(path, made).await
        && !session.stat(path).await?.is_some_and(|f| is_folder(&f))
    {
        return Err(failure);
    }
    sync_folder(session, folder_of(path, ".")).await
}

/// The folder that a path is in; `root` for what is in none.
pub(super) fn folder_of<'a>(path: &'a str, root: &'a str) -> &'a str {
    match path.rsplit_once('/') {
        Some(("", _)) => "/",
        Some((folder, _)) => folder,
        None => root,
    }
}

pub(super) fn is_folder(found: &FileAttributes) -> bool {
    kind(found) == Some(0o040_000)
}

/// The file type of POSIX, which not every server tells in a listing.
pub(super) fn kind(found: &FileAttributes) -> Option<u32> {
    let kind = found.permissions? & 0o170_000;
    (kind != 0).then_some(kind)
}

/// Makes the names in a folder durable, where the server opens folders like files (OpenSSH on a
/// POSIX system does); on others that is the server's affair.
pub(super) async fn sync_folder(session: &Session, path: &str) -> Outcome<()> {
    let Some(folder) = Folder::open(session, path).await else {
        return Ok(());
    };
    let synced = folder.sync(session).await;
    folder.close(session).await;
    synced
}

/// A folder whose names are made durable.
pub(super) struct Folder {
    handle: String,
    path: String,
}

impl Folder {
    pub async fn open(session: &Session, path: &str) -> Option<Folder> {
        if !session.has(super::session::FSYNC) {
            return None;
        }
        let opened = session
            .sftp
            .open(path, OpenFlags::READ, FileAttributes::empty());
        let handle = session.ask(path, opened).await.ok()?.handle;
        let path = path.to_owned();
        Some(Folder { handle, path })
    }

    pub async fn sync(&self, session: &Session) -> Outcome<()> {
        let synced = session.sftp.fsync(self.handle.as_str());
        session.ask(&self.path, synced).await.map(drop)
    }

    pub async fn close(self, session: &Session) {
        session.close(self.handle).await;
    }
}

/// Whether the same may succeed on another connection.
pub(super) fn passing(failure: &Failure) -> bool {
    matches!(failure.class, Class::Network | Class::Timeout)
}

const ATTEMPTS: u32 = 3;
const PAUSE_FIRST: Duration = Duration::from_millis(300);
