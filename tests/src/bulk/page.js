// One end of a link in a browser, as Shoal's page and worker have it: the page holds the connection, a worker the data
// channels. Same labels, orders, message size, limit and threshold of what the browser buffers.

globalThis.end = (() => {
  const work = () => {
    const MESSAGE_BYTES = 10 + 32768, TIMED_BYTES = 10000, LIMIT_BYTES = 1 << 20;
    const links = [], sent = [];
    let turn = 0;
    let bulk = false, rate = null, window = Infinity, booked = 0, timer = null, timed = 0, got = 0, told = 0;
    const tell = (event) => postMessage(event);
    const message = (kind, bytes) => { const made = new Uint8Array(bytes); made[0] = kind; return made; };
    // The next of the links that has room, in turns.
    const room = (bytes) => {
      for (let tried = 0; tried < links.length; tried++) {
        turn = (turn + 1) % links.length;
        const link = links[turn], waiting = link.tensors.bufferedAmount;
        if (link.reports?.readyState === 'open' && link.sent - link.received + bytes > window) continue;
        if (waiting === 0 || waiting + bytes <= LIMIT_BYTES) return link;
      }
      return null;
    };
    const send = (kind, bytes) => {
      const way = room(bytes);
      if (!way || !due(bytes)) return false;
      way.tensors.send(message(kind, bytes));
      way.sent += bytes;
      return true;
    };
    const isOpen = () => links.length && [...links].every((link) => link?.tensors?.readyState === 'open' && link.control?.readyState === 'open');
    // As the native client's pacer: not before what was booked is through, with 50 ms that may be made up for.
    const due = (bytes) => {
      if (rate === null) return true;
      const now = performance.now();
      booked = Math.max(booked, now - 50);
      if (booked > now) {
        timer ??= setTimeout(() => { timer = null; flush(); }, booked - now);
        return false;
      }
      booked += bytes / rate * 1000;
      return true;
    };
    const flush = () => {
      if (!isOpen()) return;
      while (timed > 0) { if (!send(1, TIMED_BYTES)) return; timed--; }
      while (bulk && send(0, MESSAGE_BYTES));
    };
    const hear = (way, { data }) => {
      const link = links[way];
      link.got += data.byteLength;
      if (link.reports?.readyState === 'open') link.reports.send(Uint32Array.of(link.got));
      const kind = new Uint8Array(data, 0, 1)[0];
      if (kind === 1) return links[0].control.send(message(2, 1));
      if (kind === 2) return tell({ event: 'timed', seconds: (performance.now() - sent.shift()) / 1000 });
      got += data.byteLength;
      const now = performance.now();
      if (now - told < 50) return;
      told = now;
      tell({ event: 'got', bytes: got, at: now / 1000 });
    };
    const take = (channel, way) => {
      const link = links[way] ??= { sent: 0, received: 0, got: 0 };
      link[channel.label] = channel;
      channel.binaryType = 'arraybuffer';
      if (channel.label === 'reports') {
        channel.onmessage = ({ data }) => { link.received = Math.max(link.received, new Uint32Array(data)[0]); flush(); };
        return;
      }
      channel.bufferedAmountLowThreshold = (channel.label === 'tensors' ? LIMIT_BYTES : 256 << 10) / 2;
      channel.onmessage = (event) => hear(way, event);
      channel.onbufferedamountlow = flush;
      const opened = () => {
        if (link.control?.readyState === 'open' && link.tensors?.readyState === 'open') tell({ event: 'open', way });
      };
      channel.onopen = opened;
      channel.onclose = () => tell({ event: 'closed' });
      opened();
    };
    onmessage = ({ data }) => {
      if (data.channel) take(data.channel, data.way);
      if ('rate' in data) ({ rate, window } = data);
      if ('bulk' in data) bulk = data.bulk;
      if (data.time) { sent.push(performance.now()); timed++; }
      flush();
    };
  };

  const worker = new Worker(URL.createObjectURL(new Blob([`(${work})()`])));
  let news = [];
  const connections = [];
  let reports = false;
  const tell = (event) => news.push(event);
  worker.onmessage = ({ data }) => tell(data);
  const pass = (way, channel) => worker.postMessage({ channel, way }, [channel]);
  const describe = async (way, description) => {
    await connections[way].setLocalDescription(description);
    tell({ event: 'link', way, link: { description: { generation: 1, sdp: description.sdp } } });
  };
  const steps = {
    async offer(way) {
      pass(way, connections[way].createDataChannel('control', { ordered: true }));
      pass(way, connections[way].createDataChannel('tensors', { ordered: false }));
      if (reports) pass(way, connections[way].createDataChannel('reports', { ordered: false }));
      await describe(way, await connections[way].createOffer());
    },
    async answer(way, { sdp }) {
      await connections[way].setRemoteDescription({ type: 'offer', sdp });
      await describe(way, await connections[way].createAnswer());
    },
    accept: (way, { sdp }) => connections[way].setRemoteDescription({ type: 'answer', sdp }),
    candidate: (way, { candidate }) => connections[way].addIceCandidate(JSON.parse(candidate)),
  };
  const orders = {
    begin({ upload_max, ways, window_bytes, relay }) {
      reports = Boolean(window_bytes);
      for (let way = 0; way < ways; way++) {
        const connection = new RTCPeerConnection(relay ? { iceServers: [relay], iceTransportPolicy: 'relay' } : {});
        connections.push(connection);
        connection.onicecandidate = ({ candidate }) => {
          if (!candidate?.candidate) return;
          const said = JSON.stringify(candidate);
          tell({ event: 'link', way, link: { candidate: { generation: 1, candidate: said } } });
        };
        connection.ondatachannel = ({ channel }) => pass(way, channel);
      }
      worker.postMessage({ rate: upload_max, window: window_bytes ?? Infinity });
    },
    async step({ way, step }) {
      const [[kind, what]] = Object.entries(step);
      await steps[kind](way, what);
    },
    bulk(bulk) { worker.postMessage({ bulk }); },
  };
  return {
    async obey(order) {
      if (order === 'time') return worker.postMessage({ time: true });
      const [[kind, what]] = Object.entries(order);
      await orders[kind](what);
    },
    async news(wait) {
      if (!news.length) await new Promise((done) => setTimeout(done, wait));
      const told = news;
      news = [];
      return told;
    },
  };
})();
true
