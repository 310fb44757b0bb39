//! From the kernel's first process to a machine that backs up: the steps, in order.
//!
//! A step that fails is said and does not stop the next one: a machine without a network or a disk
//! still has a console that says so. Only without `/proc`, `/sys` and `/dev` there is nothing.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::set_cad_enabled;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::sethostname;
use pghoard::config::LogLevel;
use pghoard::report::{self, Form};
use pghoard::{Failure, Outcome, durable};

use crate::diary::{self, Diary};
use crate::host::troubles::{self, Troubles};
use crate::host::{CLOCK, DATA, HOSTNAME, Host, InForce};
use crate::lines::{self, Attended};
use crate::power::{self, How};
use crate::settings::store::{DAEMON, Store, give};
use crate::supervise::Supervisor;
use crate::update::trial::Trial;
use crate::watchdog::{FEED_EVERY, Watchdog};
use crate::{children, console, control, disk, network, time};

const MODULES: &str = "/lib/modules";
const SEED: &str = "/data/settings/seed";
const SEED_BYTES: usize = 512;
/// The daemon stores what it holds meanwhile, for as long as its settings let it.
const END_WITHIN: Duration = Duration::from_secs(1_200);
const ASKED_TWICE: Duration = Duration::from_secs(10);
const END_TURN: Duration = Duration::from_secs(1);
/// Sockets, spool files and uploads of many sites.
const FILES_MAX: u64 = 65_536;

/// PID 1. It never returns: where it would, the kernel panics and starts the machine anew.
pub fn run() -> Outcome<()> {
    let started = Instant::now();
    mount_kernel()?;
    panic_aloud();
    let diary = Diary::start()?;
    report::start(Form::Full, LogLevel::Info);
    said(sethostname(HOSTNAME).map_err(|e| Failure::io(&e.into(), "hostname")));
    log::info!("PGHoard appliance {}", env!("CARGO_PKG_VERSION"));
    said(diary::hear_kernel());
    said(load_modules(Path::new(MODULES)));
    said(set_cad_enabled(false).map_err(|e| Failure::io(&e.into(), "Ctrl-Alt-Del")));
    let limits = setrlimit(Resource::RLIMIT_NOFILE, FILES_MAX, FILES_MAX);
    said(limits.map_err(|e| Failure::io(&e.into(), "open files")));
    said(mount_firmware());
    lines::announce("PGHoard starts: looking at the data partition");
    let children = children::reaper();
    let (data, store) = open_data(&children, &diary);
    said(stir_entropy());
    let (power, orders) = channel();
    power::watch_buttons(&power);
    let supervisor = Supervisor::start(&children, environment(), copy(&diary)?)?;
    let network = Arc::new(network::start(
        network::Settings::default(),
        HOSTNAME,
        Path::new("/run/resolv.conf"),
    )?);
    let named = Arc::clone(&network);
    let time = time::start(
        time::Settings::default(),
        Box::new(move || named.time_servers()),
        Box::new(time::Kernel),
        Path::new(CLOCK),
    )?;
    let host = Arc::new(Host {
        children,
        diary,
        supervisor,
        network,
        time,
        trial: Trial::start(),
        power,
        started,
        data,
        store,
        change: Mutex::new(()),
        inforce: Mutex::new(InForce::default()),
    });
    said(control::serve(&host));
    // The daemon looks for the file.
    let mut troubles = Troubles::default();
    troubles.look(&host);
    host.take_settings();
    host.grow_data();
    let attended = Attended::default();
    lines::start(&host, &attended);
    log::info!("ready after {:?}", started.elapsed());
    let (watchdog, how, who) = live(&host, &attended, &orders, &mut troubles);
    let (down, hears) = channel();
    said(children::thread("last-resort", move || {
        last_resort(watchdog, how, &orders, &hears);
    }));
    end(&host, how, &who, &down)
}

/// What people did while the daemon did not answer is told to it now.
fn deliver_unsaid() {
    let deliver = || match console::deliver_unsaid() {
        Ok(0) => {}
        Ok(told) => log::info!("told the daemon of {told} changes made meanwhile"),
        Err(failure) => log::warn!("{failure}"),
    };
    said(children::thread("unsaid", deliver));
}

/// An end that hangs is cut off after a while, or when a second one asks for it; what was
/// acknowledged is stored, and file system and log are made for it.
fn last_resort(
    mut watchdog: Watchdog,
    how: How,
    orders: &Receiver<(How, String)>,
    down: &Receiver<()>,
) {
    let began = Instant::now();
    while began.elapsed() < END_WITHIN {
        watchdog.feed();
        if down.try_recv().is_ok() {
            return watchdog.disarm();
        }
        // The button that asked for it may say so twice.
        match orders.recv_timeout(END_TURN) {
            Ok(_) if began.elapsed() > ASKED_TWICE => break,
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => thread::sleep(END_TURN),
        }
    }
    log::error!("the end hangs: it is cut off");
    nix::unistd::sync();
    said(power::turn(how));
}

/// A thread that panics takes the machine with it, which starts anew: half a PID 1 is worse. The
/// console hears why, for standard error is the log by then.
fn panic_aloud() {
    std::panic::set_hook(Box::new(|panic| {
        last_words(&panic.to_string());
        std::process::abort();
    }));
}

/// To the kernel's console, as nobody may come to write the log.
pub fn last_words(message: &str) {
    if let Ok(mut console) = File::options().write(true).open("/dev/console") {
        let _unseen = write!(console, "\r\nPID 1: {message}\r\n");
    }
}

fn said(outcome: Outcome<()>) {
    if let Err(failure) = outcome {
        log::error!("{failure}");
    }
}

fn mount_kernel() -> Outcome<()> {
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let none = safe | MsFlags::MS_NOEXEC;
    for (kind, place, flags, options) in [
        ("proc", "/proc", none, ""),
        ("sysfs", "/sys", none, ""),
        ("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755"),
        (
            "devpts",
            "/dev/pts",
            MsFlags::MS_NOSUID,
            "mode=0620,ptmxmode=0666",
        ),
        ("tmpfs", "/run", none, "mode=0755,size=32m"),
        ("tmpfs", "/tmp", none, "mode=1777,size=32m"),
    ] {
        let about = |e: std::io::Error| Failure::io(&e, format!("mount {place}"));
        fs::create_dir_all(place).map_err(about)?;
        mount(Some(kind), place, Some(kind), flags, Some(options)).map_err(|e| about(e.into()))?;
    }
    for folder in ["/run/pghoard", "/run/pghoard/alerts"] {
        fs::create_dir_all(folder).map_err(|e| Failure::io(&e, folder))?;
        give(Path::new(folder), Some(DAEMON))?;
    }
    Ok(())
}

/// In the order of the list; one that this machine has no use for refuses, which is no failure.
fn load_modules(folder: &Path) -> Outcome<()> {
    let order = folder.join("order");
    let names = fs::read_to_string(&order).map_err(|e| Failure::io(&e, order.display()))?;
    for name in names.lines() {
        let path = folder.join(format!("{name}.ko"));
        let file = File::open(&path).map_err(|e| Failure::io(&e, path.display()))?;
        if let Err(error) = finit_module(&file, c"", ModuleInitFlags::empty()) {
            log::debug!("module {name}: {error}");
        }
        // The root is memory: what is loaded is there already.
        let _it_stays = fs::remove_file(&path);
    }
    Ok(())
}

/// Without UEFI there is none, and no slots either.
fn mount_firmware() -> Outcome<()> {
    let place = "/sys/firmware/efi/efivars";
    if !Path::new(place).exists() {
        log::warn!("not started by UEFI: there are no slots to update");
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(
        Some("efivarfs"),
        place,
        Some("efivarfs"),
        flags,
        None::<&str>,
    )
    .map_err(|e| Failure::io(&e.into(), format!("mount {place}")))
}

type Data = (Result<disk::Device, String>, Option<Store>);

fn open_data(children: &children::Children, diary: &Diary) -> Data {
    let place = Path::new(DATA);
    let opened = disk::open(place, children);
    let mounted = opened.is_ok();
    let opened = opened.and_then(|device| {
        let store = Store::open(&place.join("settings"))?;
        for folder in ["pghoard", "store", "log", "updates", "restore", "support"] {
            let folder = place.join(folder);
            durable::make_folders(&folder)?;
            give(&folder, Some(DAEMON))?;
        }
        durable::make_folders(&place.join("console"))?;
        diary.keep_in(&place.join("log"));
        Ok((device, store))
    });
    match opened {
        Ok((device, store)) => (Ok(device), Some(store)),
        Err(failure) => {
            log::error!("{failure}");
            if mounted {
                power::unmount(place);
            }
            (Err(failure.to_string()), None)
        }
    }
}

/// What the last run left is mixed in, and the next one gets something new.
fn stir_entropy() -> Outcome<()> {
    let about = |e: std::io::Error| Failure::io(&e, SEED);
    let pool = "/dev/urandom";
    let mut device = File::options()
        .read(true)
        .write(true)
        .open(pool)
        .map_err(|e| Failure::io(&e, pool))?;
    if let Ok(seed) = fs::read(SEED) {
        device.write_all(&seed).map_err(about)?;
    }
    let mut next = vec![0; SEED_BYTES];
    device.read_exact(&mut next).map_err(about)?;
    if !Path::new(DATA).join("settings").is_dir() {
        return Ok(());
    }
    durable::write_own(Path::new(SEED), &next)
}

fn environment() -> Vec<(&'static str, String)> {
    vec![
        ("PGHOARD_CLOCK_FILE", CLOCK.to_owned()),
        ("PGHOARD_MACHINE_FILE", troubles::FILE.to_owned()),
        ("PGHOARD_CONTROL", control::SOCKET.to_owned()),
        ("PGHOARD_LOG_DIR", "/data/log".to_owned()),
        ("PGHOARD_UPDATES", "/data/updates".to_owned()),
    ]
}

fn copy(diary: &Diary) -> Outcome<std::os::fd::OwnedFd> {
    let copy = diary.pipe.try_clone();
    copy.map_err(|e| Failure::io(&e, "log"))
}

/// Until somebody wants it to end.
fn live(
    host: &Arc<Host>,
    attended: &Attended,
    orders: &Receiver<(How, String)>,
    troubles: &mut Troubles,
) -> (Watchdog, How, String) {
    let mut watchdog = Watchdog::open();
    let mut ready = None;
    loop {
        troubles.look(host);
        let told = host.supervisor.told();
        if told.healthy_since != ready {
            ready = told.healthy_since;
            deliver_unsaid();
        }
        if let Some(left) = watchdog.look(&told, attended.now()) {
            log::warn!("the daemon is not well; the machine starts anew in {left:?}");
        }
        if let Some((how, who)) = host.trial.look(host) {
            return (watchdog, how, who);
        }
        match orders.recv_timeout(FEED_EVERY) {
            Ok((how, who)) => return (watchdog, how, who),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    }
}

/// The daemon first, in its own order: it stores what it holds while WAL still comes in.
fn end(host: &Arc<Host>, how: How, who: &str, down: &Sender<()>) -> Outcome<()> {
    log::info!("{how:?}, by {who}");
    lines::announce(&format!(
        "{how:?}, by {who}: the daemon stores what it holds"
    ));
    host.supervisor.finish();
    power::end_everybody(&host.children);
    log::info!("down");
    host.diary.close();
    if host.data.is_ok() {
        power::unmount(Path::new(DATA));
    }
    let _nobody_waits = down.send(());
    power::turn(how)
}

impl Host {
    /// Beside everything else: a large disk takes a while.
    fn grow_data(self: &Arc<Host>) {
        let host = Arc::clone(self);
        said(children::thread("grow", move || {
            if let Ok(device) = &host.data {
                said(disk::grow(device, Path::new(DATA)));
            }
        }));
    }
}
