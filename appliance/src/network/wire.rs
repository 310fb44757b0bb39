//! The socket of a DHCP client: bound to its interface, which may not have an address yet.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
};
use pghoard::{Failure, Outcome};

const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;

pub struct Wire {
    socket: UdpSocket,
    link: String,
}

impl Wire {
    pub fn open(link: &str) -> Outcome<Wire> {
        let open = || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
            setsockopt(&socket, sockopt::ReuseAddr, &true)?;
            setsockopt(&socket, sockopt::Broadcast, &true)?;
            setsockopt(&socket, sockopt::BindToDevice, &link.into())?;
            let any = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT));
            bind(socket.as_raw_fd(), &any)?;
            Ok(UdpSocket::from(socket))
        };
        let about = format!("{link}: the DHCP client's socket");
        let socket = open().map_err(|error: nix::Error| Failure::io(&error.into(), about))?;
        let link = link.to_owned();
        Ok(Wire { socket, link })
    }

    pub fn send(&self, bytes: &[u8], to: Ipv4Addr) -> Outcome<()> {
        let sent = self.socket.send_to(bytes, (to, SERVER_PORT));
        let about = || format!("{}: asking {to} by DHCP", self.link);
        sent.map(|_all| ())
            .map_err(|error| Failure::io(&error, about()))
    }

    /// The next message that has come.
    pub fn next(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; DATAGRAM_BYTES];
        for _ in 0..ERRORS_MAX {
            match self.socket.recv_from(&mut bytes) {
                Ok((length, from)) if from.port() == SERVER_PORT => {
                    bytes.truncate(length);
                    return Some(bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                // A stranger's, or a port unreachable of a server that is down.
                Ok(_) | Err(_) => {}
            }
        }
        None
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The longest datagram of an Ethernet; what is longer was not asked for.
const DATAGRAM_BYTES: usize = 2048;
/// Of what is queued at once.
const ERRORS_MAX: usize = 16;
