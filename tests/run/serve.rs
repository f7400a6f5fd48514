//! `voxmill serve`: answered is who knows the address, with the report, its state and slices of volumes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use crate::bench::Bench;

struct Server {
    child: Child,
    host: String,
    token: String,
}

impl Server {
    fn begin(b: &Bench) -> Self {
        let mut child = b.command(&["serve", "p.yaml"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        let rest = url.trim().strip_prefix("http://").unwrap_or_else(|| panic!("a URL, not {url:?}"));
        let (host, token) = rest.split_once('/').unwrap();
        Self { child, host: host.into(), token: token.trim_end_matches('/').into() }
    }

    /// Status line and body.
    fn get(&self, path: &str, host: &str) -> (String, Vec<u8>) {
        let mut stream = TcpStream::connect(&self.host).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        (head.lines().next().unwrap().to_string(), answer[end + 4..].to_vec())
    }

    fn page(&self, path: &str) -> String {
        let (status, body) = self.get(&format!("/{}/{path}", self.token), &self.host);
        assert_eq!(status, "HTTP/1.1 200 OK", "{path}: {}", String::from_utf8_lossy(&body));
        String::from_utf8_lossy(&body).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_page_is_there_before_while_and_after_a_run_and_for_nobody_else() {
    let b = Bench::new(2);
    let server = Server::begin(&b);
    assert!(server.host.starts_with("127.0.0.1:") && server.token.len() == 32);
    assert!(server.page("").contains("Nothing was run yet"));
    let before = server.page("state");
    b.run(&["ready"]).expect(0);
    let after = server.page("state");
    assert!(after.contains("done, last at ready (2 artifacts)") && after != before, "{after}");
    let report = server.page("");
    assert!(report.contains("hippocampus_001") && report.contains("class=\"mosaic\"") && report.contains("fetch(\"state\")"));
    assert!(server.page("volumes").contains("volume?of=iso%2Fhippocampus_001"));
    let volume = server.page("volume?of=iso%2Fhippocampus_001");
    assert!(volume.contains("Slice z") && volume.contains("type=\"range\""), "{volume}");
    let (_, first) = server.get(&format!("/{}/slices?of=iso%2Fhippocampus_001&z=3&y=9&x=9", server.token), &server.host);
    let (_, second) = server.get(&format!("/{}/slices?of=iso%2Fhippocampus_001&z=9&y=9&x=9", server.token), &server.host);
    assert!(first.starts_with(b"\x89PNG") && first != second);
    // Beyond the volume is its last slice, and nothing that is not there ends the server.
    let (status, _) =
        server.get(&format!("/{}/slices?of=iso%2Fhippocampus_001&z=99999&y=9&x=9&low=0&high=nan", server.token), &server.host);
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(server.get(&format!("/{}/volume?of=iso%2Fnobody", server.token), &server.host).0.contains("500"));
    assert!(server.get(&format!("/{}/none", server.token), &server.host).0.contains("404"));

    for (path, host) in
        [("/", &*server.host), ("/0123456789abcdef0123456789abcdef/", &server.host), (&*format!("/{}/", server.token), "evil.example")]
    {
        let (status, body) = server.get(path, host);
        assert!(status.contains("403") && !String::from_utf8_lossy(&body).contains("hippocampus"), "{path} {host}: {status}");
    }
    assert!(server.page("state").contains("done"));
}
