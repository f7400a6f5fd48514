//! Lines into a file, or POST over HTTP/1.1 (one connection an event: there are two a node). No TLS: a proxy on this machine speaks it for us.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(5);
/// Where servers of OpenLineage take events, unless told.
const PATH: &str = "/api/v1/lineage";
/// Of an answer that is looked at.
const MOST_BYTES: u64 = 64 << 10;

pub enum Sink {
    /// One JSON object a line.
    File(File),
    Http(Target),
}

/// `http://HOST[:PORT][/PATH]`
#[derive(Debug, PartialEq)]
pub struct Target {
    host: String,
    port: u16,
    path: String,
}

impl Sink {
    pub fn open(to: &str) -> Result<Self, String> {
        match to.split_once("://") {
            Some(("http", rest)) => Ok(Sink::Http(Target::of(rest)?)),
            Some(("https", _)) => {
                Err("https is not spoken here: give http:// to a proxy on this machine that passes it on, or a file".into())
            }
            Some((scheme, _)) => Err(format!("{scheme}:// is not known: expected http:// or a file")),
            None => OpenOptions::new().create(true).append(true).open(to).map(Sink::File).map_err(|e| format!("cannot be written: {e}")),
        }
    }

    pub fn send(&mut self, event: &str) -> Result<(), String> {
        match self {
            // One write a line: lines of several processes do not mix.
            Sink::File(file) => file.write_all(format!("{event}\n").as_bytes()).map_err(|e| format!("cannot be written: {e}")),
            Sink::Http(target) => target.post(event, std::env::var("OPENLINEAGE_API_KEY").ok().as_deref()),
        }
    }
}

impl Target {
    fn of(rest: &str) -> Result<Self, String> {
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let is_clean = |t: &str| t.bytes().all(|b| (0x21..0x7f).contains(&b));
        if authority.is_empty() || !is_clean(rest) || authority.contains('@') {
            return Err("expected http://HOST[:PORT][/PATH], without a user and without spaces".into());
        }
        // An IPv6 address stands in brackets.
        let after = authority.rfind(']').map_or(0, |at| at + 1);
        let (host, port) = match authority[after..].rfind(':') {
            Some(at) => {
                let (host, port) = authority.split_at(after + at);
                (host, port[1..].parse().map_err(|_| format!("{} is no port: expected 1 to 65535", &port[1..]))?)
            }
            None => (authority, 80),
        };
        let path = if path.len() < 2 { PATH } else { path };
        Ok(Self { host: host.trim_matches(['[', ']']).into(), port, path: path.into() })
    }

    fn post(&self, body: &str, key: Option<&str>) -> Result<(), String> {
        let place = format!("{} port {}", self.host, self.port);
        let found = (self.host.as_str(), self.port).to_socket_addrs().map_err(|e| format!("no address of {} is found: {e}", self.host))?;
        let mut why = format!("{} has no address", self.host);
        let mut stream = None;
        for address in found {
            match TcpStream::connect_timeout(&address, WAIT) {
                Ok(open) => {
                    stream = Some(open);
                    break;
                }
                Err(e) => why = format!("{place} does not answer: {e}"),
            }
        }
        let mut stream = stream.ok_or(why)?;
        let lost = |e: std::io::Error| format!("{place} hung up: {e}");
        stream.set_read_timeout(Some(WAIT)).and_then(|()| stream.set_write_timeout(Some(WAIT))).map_err(lost)?;
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let key = key.filter(|k| k.bytes().all(|b| (0x21..0x7f).contains(&b))).map(|k| format!("Authorization: Bearer {k}\r\n"));
        let request = format!(
            "POST {} HTTP/1.1\r\nHost: {host}:{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{}Connection: close\r\n\r\n{body}",
            self.path,
            self.port,
            body.len(),
            key.unwrap_or_default()
        );
        stream.write_all(request.as_bytes()).map_err(lost)?;
        let mut answer = Vec::new();
        // What has come until it stops is enough to tell.
        let ended = stream.take(MOST_BYTES).read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.lines().next().unwrap_or_default();
        match status.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)) {
            Some(code) if code.starts_with('2') => Ok(()),
            Some(_) => {
                let said = answer.split_once("\r\n\r\n").map_or("", |(_, said)| said.trim());
                let said: String = said.chars().filter(|c| !c.is_control()).take(200).collect();
                Err(format!("{place} answers `{}` to POST {} {said}", &status[9..], self.path).trim_end().to_string())
            }
            None => Err(ended.err().map_or_else(|| format!("{place} does not speak HTTP"), lost)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_place_is_a_host_a_port_and_a_path() {
        let target = |host: &str, port, path: &str| Ok(Target { host: host.into(), port, path: path.into() });
        assert_eq!(Target::of("marquez:5000"), target("marquez", 5000, PATH));
        assert_eq!(Target::of("[::1]:81/x?y=1"), target("::1", 81, "/x?y=1"));
        assert_eq!(Target::of("h/"), target("h", 80, PATH));
        for wrong in ["", "/x", "h:x", "h:99999", "a b", "u@h", "h/\r\nX: y"] {
            assert!(Target::of(wrong).is_err(), "{wrong}");
        }
        assert!(Sink::open("https://h").is_err_and(|e| e.contains("proxy")));
        assert!(Sink::open("kafka://h").is_err_and(|e| e.contains("kafka")));
        assert!(Sink::open("/nowhere/at/all").is_err());
    }

    /// Answers one request, and gives what was asked.
    fn server(answer: &'static str) -> (Target, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            let mut block = [0; 1024];
            while !asked.ends_with(b"}") {
                let n = stream.read(&mut block).unwrap();
                asked.extend_from_slice(&block[..n]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(asked).unwrap()
        });
        (Target { host: "127.0.0.1".into(), port, path: PATH.into() }, thread)
    }

    #[test]
    fn events_are_posted_and_refusals_are_told() {
        let (target, asked) = server("HTTP/1.1 201 Created\r\n\r\n");
        target.post("{\"a\":1}", Some("secret")).unwrap();
        let asked = asked.join().unwrap();
        assert!(asked.starts_with("POST /api/v1/lineage HTTP/1.1\r\n") && asked.ends_with("\r\n\r\n{\"a\":1}"), "{asked}");
        assert!(asked.contains("Content-Length: 7\r\n") && asked.contains("Authorization: Bearer secret\r\n"), "{asked}");
        let (target, asked) = server("HTTP/1.1 422 Unprocessable\r\n\r\nno runId\n");
        let why = target.post("{}", None).unwrap_err();
        assert!(why.contains("422 Unprocessable") && why.contains("no runId"), "{why}");
        assert!(!asked.join().unwrap().contains("Authorization"));
        let (target, _asked) = server("SSH-2.0\r\n");
        assert!(target.post("{}", None).unwrap_err().contains("does not speak HTTP"));
        // Nobody listens there any more.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let nobody = Target { host: "127.0.0.1".into(), port, path: PATH.into() };
        assert!(nobody.post("{}", None).unwrap_err().contains("does not answer"));
    }
}
