#!/usr/bin/env python3
"""A NowConnect agent in Python's standard library, written from protocol.md alone.

It is there to keep that page honest: docs/agent_test.go runs it against the
real hub. It is no agent to use: one link, native carrier, no proxy.

    agent.py http://127.0.0.1:8765/tunnel premise-1 token-file addomain=127.0.0.1:389
"""
import json, queue, secrets, socket, ssl, struct, sys, threading, time
from urllib.parse import urlsplit

HELLO, HELLO_ACK, OPEN, OPENED, DATA, FIN, RST, CREDIT, PING, PONG, DRAIN, CLOSE, AUTH, AUTH_ACK = range(1, 15)
RST_REASON, DENIED, CONNECT_FAILED, DRAINING, OVERFLOW = 2, 4, 6, 9, 11
MAX_PAYLOAD, MAX_HELLO, WINDOW = 16376, 65536, 65536


class Link:
    def __init__(self, sock, rest, targets):
        self.sock, self.buf, self.targets = sock, rest, targets
        self.sending = threading.Lock()
        self.sessions, self.newest = {}, 0

    # §3: type (1), length (3), cid (4), payload.
    def send(self, kind, cid=0, payload=b""):
        with self.sending:
            self.sock.sendall(struct.pack(">II", kind << 24 | len(payload), cid) + payload)

    def exactly(self, n):
        while len(self.buf) < n:
            more = self.sock.recv(65536)
            if not more:
                raise EOFError("link lost")
            self.buf += more
        out, self.buf = self.buf[:n], self.buf[n:]
        return out

    def receive(self, longest=MAX_PAYLOAD):
        word, cid = struct.unpack(">II", self.exactly(8))
        kind, length = word >> 24, word & 0xFFFFFF
        if length > longest:
            raise ValueError("frame too long")
        return kind, cid, self.exactly(length)

    def handshake(self, agent):
        self.send(HELLO, 0, json.dumps({
            "version": 1, "capabilities": ["reauth"], "agent_id": agent, "instance": secrets.token_hex(8), "link": 0,
            "connectors": list(self.targets), "window": WINDOW, "software": "agent.py"}).encode())
        kind, _, payload = self.receive(MAX_HELLO)
        if kind == CLOSE:
            raise ValueError("refused: " + payload[1:].decode(errors="replace"))
        ack = json.loads(payload)
        if kind != HELLO_ACK or ack["version"] != 1:
            raise ValueError("no HELLO_ACK")
        self.reauth = "reauth" in ack.get("capabilities", [])
        print("link is up, accepted:", *ack["accepted"], flush=True)

    # §4, renewing the credential: what the file holds once it changes.
    def watch(self, token_file, token):
        self.answered = threading.Semaphore()  # one AUTH at a time
        while self.reauth:
            time.sleep(1)
            fresh = open(token_file).read().strip()
            if fresh and fresh != token:
                self.answered.acquire()
                token = fresh
                self.send(AUTH, 0, token.encode())

    def serve(self):
        while True:
            kind, cid, payload = self.receive()
            session = self.sessions.get(cid)
            if kind == PING:
                self.send(PONG, 0, payload)
            elif kind == CLOSE:
                return payload[0], payload[1:].decode(errors="replace")
            elif kind == OPEN:
                self.newest = cid
                self.sessions[cid] = Session(self, cid, json.loads(payload))
            elif kind == AUTH_ACK:
                ack = json.loads(payload)
                print("token renewed:", ack.get("error", "ok"), ack.get("message", ""), flush=True)
                self.answered.release()
            elif kind == DRAIN or kind == PONG or kind & 0x80:
                pass
            elif kind not in (DATA, FIN, RST, CREDIT):
                raise ValueError(f"unexpected frame type {kind}")
            elif session is not None:  # else it was under way when the session ended
                session.frame(kind, payload)


class Session:
    """One session: a thread writes to the target, another reads from it."""

    def __init__(self, link, cid, request):
        self.link, self.cid, self.request = link, cid, request
        self.inbox = queue.Queue()  # bounded by the credit that we grant
        self.granted = WINDOW
        self.credit, self.room = request["window"], threading.Condition()
        self.over = self.sent_fin = self.got_fin = self.passed_fin = False
        threading.Thread(target=self.run, daemon=True).start()

    def frame(self, kind, payload):  # on the link's reader: never blocks
        if kind == CREDIT:
            with self.room:
                self.credit += struct.unpack(">I", payload)[0]
                self.room.notify()
        elif kind == RST:
            self.end()
        elif self.got_fin:
            self.reset(RST_REASON, "frame after FIN")
        elif kind == FIN:
            self.got_fin = True
            self.inbox.put(None)
        else:
            self.granted -= len(payload)
            if self.granted < 0:
                return self.reset(OVERFLOW, "more than the credit")
            self.inbox.put(payload)

    def run(self):
        target = self.link.targets.get(self.request["connector"])
        if target is None:
            return self.reset(DENIED, "agent does not serve this connector")
        timeout = self.request.get("connect_timeout_ms", 0) / 1000 or 3
        try:
            self.target = socket.create_connection(target, timeout)
        except OSError as e:
            return self.reset(CONNECT_FAILED, e.strerror or "no connection")
        self.target.settimeout(None)
        self.link.send(OPENED, self.cid)
        threading.Thread(target=self.read_target, daemon=True).start()
        taken = 0
        try:
            while not self.over:
                piece = self.inbox.get()
                if piece is None:
                    break
                self.target.sendall(piece)
                taken += len(piece)
                if taken >= WINDOW // 4:
                    self.granted += taken
                    self.link.send(CREDIT, self.cid, struct.pack(">I", taken))
                    taken = 0
            if not self.over:
                self.target.shutdown(socket.SHUT_WR)
                self.passed_fin = True
                self.end_if_both()
        except OSError as e:
            self.reset(RST_REASON, str(e))

    def read_target(self):
        try:
            while True:
                with self.room:
                    while self.credit <= 0 and not self.over:
                        self.room.wait()
                    want = min(self.credit, MAX_PAYLOAD)
                if self.over:
                    return
                piece = self.target.recv(want)
                if not piece:
                    self.link.send(FIN, self.cid)
                    self.sent_fin = True
                    return self.end_if_both()
                with self.room:
                    self.credit -= len(piece)
                self.link.send(DATA, self.cid, piece)
        except OSError as e:
            self.reset(RST_REASON, str(e))

    def end_if_both(self):
        if self.sent_fin and self.passed_fin:
            self.end(orderly=True)

    def reset(self, reason, text):
        if not self.over:
            self.end()
            self.link.send(RST, self.cid, bytes([reason]) + text.encode()[:512])

    def end(self, orderly=False):
        self.over = True
        self.link.sessions.pop(self.cid, None)
        self.inbox.put(None)
        with self.room:
            self.room.notify_all()
        target = getattr(self, "target", None)
        if target is not None:
            if not orderly:  # RST instead of FIN
                target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                try:
                    target.shutdown(socket.SHUT_RD)  # wakes read_target
                except OSError:
                    pass
            target.close()


def connect(url, agent, token):
    """§1: the native form. Returns the connection and what came behind the 101."""
    u = urlsplit(url)
    sock = socket.create_connection((u.hostname, u.port or {"https": 443, "http": 80}[u.scheme]), 10)
    if u.scheme == "https":
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        sock = context.wrap_socket(sock, server_hostname=u.hostname)
    sock.sendall((f"GET {u.path} HTTP/1.1\r\nHost: {u.netloc}\r\nConnection: Upgrade\r\nUpgrade: nowconnect\r\n"
                  f"Nowconnect-Version: 1\r\nNowconnect-Agent: {agent}\r\nAuthorization: Bearer {token}\r\n\r\n").encode())
    head = b""
    while b"\r\n\r\n" not in head:
        more = sock.recv(4096)
        if not more or len(head) > 65536:
            raise EOFError("no answer")
        head += more
    head, rest = head.split(b"\r\n\r\n", 1)
    if not head.startswith(b"HTTP/1.1 101 "):
        raise ValueError("refused: " + head.split(b"\r\n")[0].decode() + " " + rest.decode(errors="replace").strip())
    sock.settimeout(None)
    return sock, rest


def main():
    url, agent, token_file, *targets = sys.argv[1:]
    table = {}
    for t in targets:
        name, address = t.split("=", 1)
        host, port = address.rsplit(":", 1)
        table[name] = (host, int(port))
    token = open(token_file).read().strip()
    sock, rest = connect(url, agent, token)
    link = Link(sock, rest, table)
    link.handshake(agent)
    threading.Thread(target=link.watch, args=(token_file, token), daemon=True).start()
    reason, text = link.serve()
    print(f"link is closed: reason {reason} {text}", flush=True)


if __name__ == "__main__":
    main()
