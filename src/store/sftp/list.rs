//! The names of a folder in key order, in as few passes as memory allows: a pass over a folder of
//! a million files costs thousands of answers, so pages are larger than those of a local folder.
//!
//! Budget: [`PAGE_NAMES`] names of each open folder, about 100 bytes each.

use std::collections::BTreeMap;
use std::sync::Arc;

use machine::Class;
use russh_sftp::client::error::Error as SftpError;
use russh_sftp::protocol::{File, FileAttributes, StatusCode};
use tokio::task::JoinSet;

use super::files::is_draft;
use super::link::{is_folder, kind};
use super::session::Session;
use crate::failure::{Failure, Outcome};
use crate::store::sidecar;

/// Names in key order: folders carry a `/`, as they do in keys.
pub(super) type Page = BTreeMap<String, Seen>;

/// A name of an object is seen twice, once with the data and once with the sidecar.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub sidecar: bool,
    pub data: Option<Data>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Data {
    pub size_bytes: u64,
    pub modified_s: u32,
}

/// The next names of a folder behind `after`; None where there is no such folder. Drafts that were
/// last written before `sweep_s` are removed and counted.
pub(super) async fn page(
    session: &Arc<Session>,
    folder: &str,
    after: Option<&str>,
    sweep_s: Option<u64>,
) -> Outcome<Option<(Page, u64)>> {
    let opened = session.sftp.opendir(folder);
    let Some(opened) = session.seek(folder, opened).await? else {
        return Ok(None);
    };
    let mut pass = Pass {
        session,
        folder,
        after,
        page: Page::new(),
        sweep_s,
        swept: 0,
    };
    let read = pass.read(&opened.handle).await;
    session.close(opened.handle).await;
    read.map(|()| Some((pass.page, pass.swept)))
}

pub(super) fn is_whole(page: &Page) -> bool {
    page.len() < PAGE_NAMES
}

struct Pass<'a> {
    session: &'a Arc<Session>,
    folder: &'a str,
    after: Option<&'a str>,
    page: Page,
    sweep_s: Option<u64>,
    swept: u64,
}

impl Pass<'_> {
    /// Asks for several answers at a time; they may come in any order.
    async fn read(&mut self, handle: &str) -> Outcome<()> {
        let mut asked = JoinSet::new();
        let mut ended = false;
        loop {
            while !ended && asked.len() < ASKED_MAX {
                let (session, handle) = (Arc::clone(self.session), handle.to_owned());
                asked.spawn(async move { session.sftp.readdir(handle).await });
            }
            let Some(answer) = asked.join_next().await else {
                return Ok(());
            };
            let answer = answer
                .map_err(|e| Failure::new(Class::Internal, format!("{}: {e}", self.folder)))?;
            match answer {
                Ok(names) => {
                    for file in names.files {
                        self.take(file).await?;
                    }
                }
                Err(SftpError::Status(s)) if s.status_code == StatusCode::Eof => ended = true,
                Err(e) => return Err(self.session.failure(&e, self.folder)),
            }
        }
    }

    async fn take(&mut self, file: File) -> Outcome<()> {
        let File {
            filename: name,
            attrs,
            ..
        } = file;
        if name == "." || name == ".." || name.contains('/') {
            return Ok(());
        }
        if let Some(name) = name.strip_suffix(sidecar::END) {
            self.note(name.to_owned(), |seen| seen.sidecar = true);
            return Ok(());
        }
        let path = format!("{}/{name}", self.folder);
        if sidecar::hidden(name.as_bytes()) {
            if let Some(before_s) = self.sweep_s
                && is_draft(&name)
                && attrs.mtime.is_some_and(|mtime| u64::from(mtime) < before_s)
            {
                let removed = self.session.sftp.remove(path.as_str());
                self.session.seek(&path, removed).await?;
                self.swept += 1;
            }
            return Ok(());
        }
        let Some(found) = self.followed(&path, attrs).await? else {
            return Ok(());
        };
        match is_folder(&found) {
            true => self.note(format!("{name}/"), |_| ()),
            false => {
                let data = Data {
                    size_bytes: found.size.unwrap_or(0),
                    modified_s: found.mtime.unwrap_or(0),
                };
                self.note(name, |seen| seen.data = Some(data));
            }
        }
        Ok(())
    }

    /// Follows a symbolic link, because a site may live on a disk of its own, and asks again where
    /// the listing did not say what it is.
    async fn followed(&self, path: &str, seen: FileAttributes) -> Outcome<Option<FileAttributes>> {
        match kind(&seen) {
            Some(LINK) => match self.session.stat(path).await? {
                Some(found) => Ok(Some(found)),
                None => Err(leads_nowhere(path)),
            },
            Some(_) if seen.size.is_some() => Ok(Some(seen)),
            Some(_) | None => self.session.stat(path).await,
        }
    }

    fn note(&mut self, name: String, note: impl FnOnce(&mut Seen)) {
        if self.after.is_some_and(|after| name.as_str() <= after) {
            return;
        }
        note(self.page.entry(name).or_default());
        if self.page.len() > PAGE_NAMES {
            self.page.pop_last();
        }
    }
}

pub(super) fn leads_nowhere(path: &str) -> Failure {
    let message = format!("symbolic link '{path}' leads nowhere");
    Failure::new(Class::Config, message).hint("is its file system mounted?")
}

pub(super) const LINK: u32 = 0o120_000;

const ASKED_MAX: usize = 8;
const PAGE_NAMES: usize = 300_000;
