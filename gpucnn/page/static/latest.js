const FRAME = 16; // milliseconds

/**
 * A function that does `work` with the newest value it was called with: one at a time, once a frame at most; values
 * that came meanwhile are passed over. `drop()` also ends what is under way: its signal aborts.
 */
export function latest(work) {
  let waiting = null;
  let running = null;

  async function run() {
    running = new AbortController();
    while (waiting) {
      await new Promise((next) => setTimeout(next, FRAME));
      if (!waiting) break;
      const { value } = waiting;
      waiting = null;
      running = new AbortController();
      try {
        await work(value, running.signal);
      } catch (error) {
        if (error.name !== "AbortError") throw error;
      }
    }
    running = null;
  }

  const ask = (value) => {
    waiting = { value };
    if (!running) run().catch((error) => { running = null; throw error; });
  };
  ask.drop = () => {
    waiting = null;
    running?.abort();
  };
  return ask;
}
