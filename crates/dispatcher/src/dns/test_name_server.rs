//! A name server for one test.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_resolver::Hosts;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use tokio::net::UdpSocket;

use crate::dns::names::Names;

/// Serves UDP until the runtime ends.
pub(crate) struct NameServer {
    addr: SocketAddr,
    /// The queries received: name and record type.
    pub(crate) queries: Arc<Mutex<Vec<(String, RecordType)>>>,
}

/// The reply to a query.
pub(crate) enum Reply {
    /// The address with a TTL of an hour, or no record if the query is for the other family.
    Address(IpAddr),
    /// Like `Address`, with a TTL of 0.
    Uncacheable(IpAddr),
    /// The response code without records.
    Code(ResponseCode),
    Silence,
}

impl NameServer {
    pub(crate) async fn start(reply: impl Fn(&str, RecordType) -> Reply + Send + 'static) -> NameServer {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (addr, queries) = (socket.local_addr().unwrap(), Arc::<Mutex<Vec<_>>>::default());
        let log = queries.clone();
        tokio::spawn(async move {
            let mut packet = [0; 512];
            loop {
                let (length, client) = socket.recv_from(&mut packet).await.unwrap();
                let mut message = Message::from_vec(&packet[..length]).unwrap().into_response();
                let (name, family) = (message.queries[0].name().clone(), message.queries[0].query_type());
                log.lock().unwrap().push((name.to_string(), family));
                let (address, ttl) = match reply(&name.to_string(), family) {
                    Reply::Address(address) => (address, 3_600),
                    Reply::Uncacheable(address) => (address, 0),
                    Reply::Silence => continue,
                    Reply::Code(code) => {
                        message.metadata.response_code = code;
                        socket.send_to(&message.to_vec().unwrap(), client).await.unwrap();
                        continue;
                    }
                };
                let record = RData::from(address);
                if record.record_type() == family {
                    message.answers.push(Record::from_rdata(name, ttl, record));
                }
                socket.send_to(&message.to_vec().unwrap(), client).await.unwrap();
            }
        });
        NameServer { addr, queries }
    }

    pub(crate) fn config(&self) -> Vec<NameServerConfig> {
        let mut udp = ConnectionConfig::udp();
        udp.port = self.addr.port();
        vec![NameServerConfig::new(self.addr.ip(), true, vec![udp])]
    }

    /// Returns a client that uses only this server.
    pub(crate) fn names(&self, hosts: Hosts, timeout: Duration) -> Names {
        let config = ResolverConfig::from_name_servers(self.config());
        Names::new(config, ResolverOpts::default(), hosts, timeout).unwrap()
    }
}
