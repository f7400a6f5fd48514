//! As much of HTTP/1.1 as a browser on this machine needs: GET, one answer a connection. Who does not know the token of the URL, or comes under another host
//! name (a page of somebody else's that points its name here), learns nothing.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

/// Of a request; a browser sends a tenth of it.
const MOST_BYTES: usize = 16 << 10;
const WAIT: Duration = Duration::from_secs(10);
/// Requests in hand at a time.
const WORKERS: usize = 4;

pub struct Server {
    listener: TcpListener,
    port: u16,
    token: String,
}

pub struct Answer {
    pub kind: &'static str,
    pub body: Vec<u8>,
}

/// What is asked for below the token: its path, and the values after `?`.
#[derive(Debug, PartialEq)]
pub struct Asked {
    pub path: String,
    pub values: Vec<(String, String)>,
}

impl Asked {
    pub fn value(&self, name: &str) -> Option<&str> {
        self.values.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

impl Server {
    /// On 127.0.0.1 alone, at a port that is free.
    pub fn open() -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let mut random = [0u8; 16];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
        Ok(Self { listener, port, token: random.iter().map(|b| format!("{b:02x}")).collect() })
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/{}/", self.port, self.token)
    }

    /// Answers until the process ends. `None`: there is no such page; an error is told to the one who asked.
    pub fn answer(&self, answer: &(dyn Fn(&Asked) -> Result<Option<Answer>, String> + Sync)) {
        std::thread::scope(|scope| {
            for _ in 0..WORKERS {
                scope.spawn(|| {
                    for stream in self.listener.incoming().flatten() {
                        // A browser that hangs up is nobody's failure.
                        let _ = self.one(stream, answer);
                    }
                });
            }
        });
    }

    fn one(&self, mut stream: TcpStream, answer: &dyn Fn(&Asked) -> Result<Option<Answer>, String>) -> std::io::Result<()> {
        stream.set_read_timeout(Some(WAIT))?;
        stream.set_write_timeout(Some(WAIT))?;
        let mut request = Vec::new();
        let mut block = [0; 2048];
        while !request.windows(4).any(|w| w == b"\r\n\r\n") {
            let n = stream.read(&mut block)?;
            if n == 0 || request.len() + n > MOST_BYTES {
                return Ok(());
            }
            request.extend_from_slice(&block[..n]);
        }
        let text = String::from_utf8_lossy(&request);
        let (status, given) = match asked(&text, self.port, &self.token) {
            Ok(asked) => match answer(&asked) {
                Ok(Some(given)) => ("200 OK", given),
                Ok(None) => ("404 Not Found", plain("there is no such page")),
                Err(why) => ("500 Internal Server Error", plain(&why)),
            },
            Err(status) => (status, plain(status)),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\nCache-Control: no-store\r\nReferrer-Policy: no-referrer\r\n\
             X-Content-Type-Options: nosniff\r\nX-Frame-Options: DENY\r\nContent-Security-Policy: default-src 'none'; img-src 'self' data:; \
             style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'\r\n\r\n",
            given.kind,
            given.body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(&given.body)
    }
}

fn plain(text: &str) -> Answer {
    Answer { kind: "text/plain; charset=utf-8", body: text.into() }
}

/// The request of a browser that was told the URL, or the status for anybody else.
fn asked(request: &str, port: u16, token: &str) -> Result<Asked, &'static str> {
    let mut lines = request.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let (method, target) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
    let host = lines.clone().filter_map(|l| l.split_once(':')).find(|(name, _)| name.eq_ignore_ascii_case("host")).map(|(_, v)| v.trim());
    if !host.is_some_and(|h| h == format!("127.0.0.1:{port}") || h == format!("localhost:{port}")) {
        return Err("403 Forbidden");
    }
    if method != "GET" {
        return Err("405 Method Not Allowed");
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let Some((given, path)) = path.strip_prefix('/').and_then(|p| p.split_once('/')) else { return Err("403 Forbidden") };
    // Hashes, so that the time of the comparison says nothing of the token.
    if blake3::hash(given.as_bytes()) != blake3::hash(token.as_bytes()) {
        return Err("403 Forbidden");
    }
    let values = query.split('&').filter_map(|pair| pair.split_once('=')).map(|(n, v)| (decoded(n), decoded(v))).collect();
    Ok(Asked { path: decoded(path), values })
}

/// `%41` and `+` of a URL.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = |k: usize| bytes.get(i + k).and_then(|b| (*b as char).to_digit(16));
        match (bytes[i], hex(1), hex(2)) {
            (b'%', Some(a), Some(b)) => {
                out.push((a * 16 + b) as u8);
                i += 3;
                continue;
            }
            (b'+', ..) => out.push(b' '),
            (b, ..) => out.push(b),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_knows_the_token_is_answered() {
        let ask = |line: &str, host: &str| asked(&format!("{line}\r\nAccept: */*\r\nHost: {host}\r\n\r\n"), 81, "abc");
        let seen = ask("GET /abc/view?of=iso%2Fc1&z=3 HTTP/1.1", "127.0.0.1:81").expect("the token is right");
        assert_eq!((seen.path.as_str(), seen.value("of"), seen.value("z"), seen.value("y")), ("view", Some("iso/c1"), Some("3"), None));
        for (line, host) in [
            ("GET /abd/ HTTP/1.1", "127.0.0.1:81"),
            ("GET / HTTP/1.1", "127.0.0.1:81"),
            ("GET /abc HTTP/1.1", "127.0.0.1:81"),
            ("GET /abc/ HTTP/1.1", "evil.example:81"),
            ("GET /abc/ HTTP/1.1", "127.0.0.1"),
        ] {
            assert_eq!(ask(line, host), Err("403 Forbidden"), "{line} {host}");
        }
        assert_eq!(ask("POST /abc/ HTTP/1.1", "localhost:81"), Err("405 Method Not Allowed"));
    }

    #[test]
    fn texts_of_a_url_are_read_whatever_they_hold() {
        assert_eq!(["a%20b+c", "%", "%4", "%zz", "%C3%A9", "%ff"].map(decoded), ["a b c", "%", "%4", "%zz", "é", "\u{fffd}"]);
    }
}
