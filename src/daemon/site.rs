//! What a site's configuration amounts to: its store, spool and connections, and the policy that
//! decide works by.

use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use machine::event::WalIn;
use machine::policy::{self, Policy, SitePolicy};
use machine::task::Means;
use machine::{Event, File, SegmentSize, Site, SiteState, TaskId};
use serde_json::Value;

use crate::codec::Encoding;
use crate::codec::slots::Slots;
use crate::config::{self, Activity, Config, Node, PreferredNode};
use crate::daemon::Sites;
use crate::failure::{Failure, Outcome};
use crate::journal::start::Scan;
use crate::pg::conninfo::{Conninfo, Defaults, Place as Host};
use crate::serve::archive::{Door, Doors};
use crate::spool::{self, RealDisk, Spool};
use crate::store::Metadata;
use crate::store::choose::{self, Missing};
use crate::work::{Place, label};

pub struct SiteContext {
    pub place: Place,
    /// How a basebackup's chunks are encoded: as everything else, with more threads.
    pub chunk_encoding: Encoding,
    pub spool: Spool,
    pub spool_directory: PathBuf,
    pub nodes: Vec<Conninfo>,
    pub config: config::Site,
}

impl SiteContext {
    /// What the spool held when the site was opened, as events; what is of no use goes.
    pub fn found(&self, scan: Scan) -> Outcome<Vec<(Option<Site>, Event)>> {
        for useless in &scan.useless {
            self.spool.remove(useless)?;
        }
        let site = Some(Site(self.config.name.clone()));
        let events = scan.events.into_iter();
        Ok(events.map(|event| (site.clone(), event)).collect())
    }

    /// Whether a running task of this site holds to something that is otherwise in `new`.
    pub fn outdated(&self, new: &SiteContext, task: &TaskId) -> bool {
        let (old, to) = (&self.config, &new.config);
        let elsewhere = self.nodes != new.nodes;
        let store = old.object_storage != to.object_storage;
        match task {
            TaskId::Receive(_) => elsewhere || old.ack != to.ack,
            TaskId::Fetch(_, means) => elsewhere && *means != Means::Directory,
            TaskId::Lease(_) => store,
            TaskId::Verify(_) => {
                let keys = old.encryption_keys != to.encryption_keys;
                let pace = old.verify_bytes_per_second != to.verify_bytes_per_second;
                store || keys || pace
            }
            TaskId::Probe(..)
            | TaskId::Take(_)
            | TaskId::Store(..)
            | TaskId::Switch(_)
            | TaskId::Delete(_)
            | TaskId::Reconcile(_)
            | TaskId::Marks(_)
            | TaskId::Export(_) => false,
        }
    }
}

const SCRATCH_FOLDER: &str = "scratch";
const EXPORT_EVENTS: u64 = 10_000;
/// A server that answered is looked at again after this long.
const PROBE_INTERVAL: Duration = Duration::from_secs(30);
const HOUR: Duration = Duration::from_secs(3_600);

/// The active sites, and the history of each. A history that cannot be opened keeps nobody from
/// work: it is told, nothing expires in it, and it counts for nothing. What is open already goes on
/// with its spool, and with its store where that is the same.
pub fn open_all(config: &Config, root: &Path, open_already: &Sites) -> Outcome<Sites> {
    config.apart()?;
    let mut sites = Sites::new();
    let encoders = Slots::new(encoders(config));
    let open = |site: &config::Site| {
        let before = open_already.get(&Site(site.name.clone()));
        open(config, site, root, &encoders, before.map(Arc::as_ref))
    };
    let about = |site: &config::Site, failure: Failure| Failure {
        message: format!("site '{}': {}", site.name, failure.message),
        ..failure
    };
    let active = |site: &&config::Site| site.active == Activity::Active;
    for site in config.sites.values().filter(active) {
        let opened = open(site).map_err(|failure| about(site, failure))?;
        sites.insert(Site(site.name.clone()), Arc::new(opened));
    }
    for site in config.sites.values().flat_map(|site| config.history(site)) {
        match open(site) {
            Ok(opened) => drop(sites.insert(Site(site.name.clone()), Arc::new(opened))),
            Err(failure) => {
                let failure = about(site, failure).hint("until then nothing expires in it");
                crate::report::error(&failure.to_string());
            }
        }
    }
    for site in config.sites.values() {
        if !sites.contains_key(&Site(site.name.clone())) {
            tell_of_files(site, &base(config, site, root).join(spool::FOLDER));
        }
    }
    Ok(sites)
}

/// As many as configured, and no more than can run.
fn encoders(config: &Config) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    usize::try_from(config.compression.threads).map_or(processors, |set| set.min(processors))
}

/// A site at rest is left alone; what waits in its spool may be the only copy.
fn tell_of_files(site: &config::Site, spool: &Path) {
    let count = fs::read_dir(spool).map_or(0, Iterator::count);
    if count > 0 {
        ::log::warn!(
            "site '{}' is inactive and '{}' holds {count} files that nothing stores; a site that \
             names it in moved_from stores them",
            site.name,
            spool.display()
        );
    }
}

/// Where a site's files are on this machine. A site at rest may have the prefix of another, in
/// another store: what lies in the spool of that is not its.
fn base(config: &Config, site: &config::Site, root: &Path) -> PathBuf {
    let other = |other: &config::Site| other.name != site.name && other.prefix == site.prefix;
    let shared = site.active == Activity::Inactive && config.sites.values().any(other);
    match shared {
        true => root.join(format!("{}.{}", site.prefix, site.name)),
        false => root.join(&site.prefix),
    }
}

fn open(
    config: &Config,
    site: &config::Site,
    root: &Path,
    encoders: &Slots,
    before: Option<&SiteContext>,
) -> Outcome<SiteContext> {
    let active = site.active == Activity::Active;
    if let Some(advice) = site.replaced_mode().filter(|_| active) {
        ::log::warn!("{advice}");
    }
    let base = base(config, site, root);
    let (spool_directory, scratch) = (base.join(spool::FOLDER), base.join(SCRATCH_FOLDER));
    // One that became a history may have another place for its files.
    let before = before.filter(|before| before.spool_directory == spool_directory);
    let spool = match before {
        Some(before) => before.spool.clone(),
        None => clean(&scratch, &spool_directory)?,
    };
    let same = before.filter(|before| before.config.object_storage == site.object_storage);
    let missing = match active {
        true => Missing::Create,
        false => Missing::Refuse,
    };
    let store = match same {
        Some(before) => Arc::clone(&before.place.store),
        None => Arc::from(choose::store(site.storage()?, missing)?),
    };
    let place = Place {
        site: site.name.clone(),
        prefix: site.prefix.clone(),
        store,
        encoding: config.encoding(site, 1)?,
        keys: site.keyring()?,
        hash: config.hash_algorithm.parse()?,
        host: host_name(),
        scratch,
        encoders: encoders.clone(),
    };
    Ok(SiteContext {
        place,
        chunk_encoding: config.encoding(site, site.basebackup_compression_threads)?,
        spool,
        spool_directory,
        nodes: site
            .nodes
            .iter()
            .map(|node| conninfo(node, site))
            .collect::<Outcome<_>>()?,
        config: site.clone(),
    })
}

/// What a run before left half done goes; for a site that nobody works on yet.
fn clean(scratch: &Path, spool_directory: &Path) -> Outcome<Spool> {
    let io = |error: std::io::Error| Failure::io(&error, scratch.display());
    if scratch.exists() {
        fs::remove_dir_all(scratch).map_err(io)?;
    }
    fs::create_dir_all(scratch).map_err(io)?;
    let disk = RealDisk::new(spool_directory)?;
    let spool = Spool::new(Arc::new(disk));
    spool.sweep()?;
    Ok(spool)
}

/// How a node is reached, under the site's `application_name`.
pub fn conninfo(node: &Node, site: &config::Site) -> Outcome<Conninfo> {
    let defaults = Defaults::of_process();
    let mut info = match node {
        Node::Text(text) => Conninfo::from_text(text.reveal(), &defaults)?,
        Node::Connection {
            connection_string,
            slot,
        } => {
            let mut info = Conninfo::from_text(connection_string.reveal(), &defaults)?;
            info.slot = slot.clone().or(info.slot);
            info
        }
        Node::Parameters(map) => {
            let text = |value: &config::Secret| Value::String(value.reveal().into());
            let map = map
                .iter()
                .map(|(key, value)| (key.clone(), text(value)))
                .collect();
            Conninfo::from_map(&map, &defaults)?
        }
    };
    info.application_name = site.application_name.clone();
    Ok(info)
}

pub fn policy(config: &Config, sites: &Sites) -> Policy {
    let mut policy = Policy {
        uploads_max: usize::try_from(config.transfer_threads).unwrap_or(1).max(1),
        retries_max: config.upload_retries_warning_limit,
        log_events_max: config.event_log_events_max,
        export_events: config.event_log_export.then(|| export_events(config)),
        ..Policy::default()
    };
    for (name, site) in sites {
        let spool_limit = site
            .config
            .spool_limit_bytes
            .unwrap_or_else(|| half_the_disk(&site.spool_directory));
        let mut made = site_policy(&site.config, &site.nodes, spool_limit);
        let history = config.history(&site.config).into_iter();
        let history = history.map(|older| Site(older.name.clone()));
        made.origins = history.filter(|older| sites.contains_key(older)).collect();
        policy.sites.insert(name.clone(), made);
    }
    policy
}

/// Where `archive_command`'s files come in.
pub fn doors(config: &Config, sites: &Sites) -> Doors {
    // As many wait as are moved.
    let ahead = usize::try_from(config.transfer_threads).unwrap_or(1) * 2;
    let active = sites.iter();
    let active = active.filter(|(_, site)| site.config.active == Activity::Active);
    let doors = active.map(|(name, site)| {
        let pgdata = site.config.pg_data_directory.as_ref();
        let door = Door {
            spool: site.spool.clone(),
            pg_wal: pgdata.map(|pgdata| pgdata.join("pg_wal")),
            ack: ack(site.config.ack),
            ahead,
        };
        (name.clone(), Arc::new(door))
    });
    doors.collect()
}

fn ack(ack: config::Ack) -> policy::Ack {
    match ack {
        config::Ack::Stored => policy::Ack::Stored,
        config::Ack::Spooled => policy::Ack::Spooled,
    }
}

/// Events in one exported chunk: a megabyte before compression, and several chunks before the log
/// is compacted.
fn export_events(config: &Config) -> u64 {
    let max = config.event_log_events_max.unwrap_or(u64::MAX);
    EXPORT_EVENTS.min(max / 10).max(1)
}

/// What decide works by, but for a history; a tool that asks one rule needs neither nodes nor a
/// spool.
pub fn site_policy(site: &config::Site, nodes: &[Conninfo], spool_limit_bytes: u64) -> SitePolicy {
    let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let size = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
    SitePolicy {
        active: site.active == Activity::Active,
        nodes: u32::try_from(nodes.len()).unwrap_or(u32::MAX),
        streams: site.active_backup_mode.streams(),
        standalone: site.active_backup_mode.wal() == WalIn::Backup,
        slot: nodes.iter().any(|node| node.slot.is_some()),
        ack: ack(site.ack),
        preferred_node: preferred(&site.preferred_node, nodes),
        spool_limit_bytes,
        cramped_since: None,
        interval_ms: site.basebackup_interval.map(ms),
        hour: site.basebackup_time.map(|time| time.hour),
        minute: site.basebackup_time.map(|time| time.minute),
        count: site.basebackup_count.map(size),
        count_min: size(site.basebackup_count_min),
        age_max_ms: site.basebackup_age_max.map(ms),
        window_ms: site.recovery_window.map(ms),
        tiers: policy::Tiers {
            weekly: site.retain_weekly,
            monthly: site.retain_monthly,
            yearly: site.retain_yearly,
        },
        reconcile_interval_ms: ms(site.reconcile_interval),
        probe_interval_ms: ms(PROBE_INTERVAL),
        backup_overdue_ms: overdue(site).map(ms),
        wal_overdue_ms: ms(site.wal_overdue),
        slot_retention_bytes: site.slot_retention_bytes,
        verify_interval_ms: site.verify_interval.map(ms),
        directory: site.pg_data_directory.is_some(),
        origins: Vec::new(),
    }
}

/// One may fail and the next one be late. Without an interval no backup is expected.
fn overdue(site: &config::Site) -> Option<Duration> {
    let interval = site.basebackup_interval?;
    let patience = interval.saturating_mul(2).saturating_add(HOUR);
    Some(site.backup_overdue.unwrap_or(patience))
}

fn preferred(wanted: &PreferredNode, nodes: &[Conninfo]) -> Option<u32> {
    let index = match wanted {
        PreferredNode::Primary => None,
        PreferredNode::Index(index) => Some(*index),
        PreferredNode::Name(name) => nodes.iter().position(|node| {
            node.hosts.iter().any(|host| match &host.place {
                Host::Network(network) => network == name || host.name == *name,
                Host::Socket(path) => path == Path::new(name),
            })
        }),
    };
    index.and_then(|index| u32::try_from(index).ok())
}

/// Without a limit of its own the spool may take half of its file system.
fn half_the_disk(directory: &Path) -> u64 {
    let stat = nix::sys::statvfs::statvfs(directory);
    stat.map_or(u64::MAX, |stat| {
        stat.blocks().saturating_mul(stat.fragment_size()) / 2
    })
}

pub fn host_name() -> String {
    let name = nix::unistd::gethostname().ok();
    name.and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "localhost".into())
}

/// The modes as the metadata of a backup names what was done.
pub fn modes(config: &config::Site) -> label::Modes<'static> {
    label::Modes {
        active_backup: match config.active_backup_mode.wal() {
            WalIn::Archive => config.active_backup_mode.name(),
            WalIn::Backup => label::STANDALONE,
        },
        basebackup: config.basebackup_mode.taken().name(),
    }
}

/// What PGHoard keeps beside an object of this kind.
pub fn metadata(
    context: &SiteContext,
    site: &SiteState,
    file: &File,
    size: SegmentSize,
) -> Metadata {
    let version = site.servers.up().map(|server| server.version).next();
    if let File::Main(name) = file {
        let backup = site.backups.all.get(name);
        let content = backup.and_then(|backup| backup.content.as_ref());
        if let Some((backup, content)) = backup.zip(content) {
            let (site, modes) = (&context.place.site, modes(&context.config));
            return label::write(site, &modes, backup, content, version, size);
        }
    }
    let version = version.map(|version| ("pg-version", version.to_string()));
    let cluster = site.servers.system_id;
    let cluster = cluster.map(|id| (label::SYSTEM_ID, id.to_string()));
    let both = version.into_iter().chain(cluster);
    both.map(|(key, value)| (key.into(), value)).collect()
}
