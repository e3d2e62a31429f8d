// The probabilities as bars: all classes in their order, or the likeliest of many.

const MOST = 12;

/** Draws a list of classes with a bar each. */
export class Bars {
  constructor(list) {
    this.list = list;
    this.names = "";
  }

  /** Show these probabilities; null for none. Returns the likeliest class and its probability. */
  update(classes, probabilities) {
    const every = Array.from(classes, (name, n) => ({ name, share: probabilities?.[n] ?? 0 }));
    const sorted = [...every].sort((a, b) => b.share - a.share);
    const shown = every.length <= MOST ? every : sorted.slice(0, MOST);
    const names = JSON.stringify(shown.length === every.length ? classes : shown.length);
    if (names !== this.names) {
      this.names = names;
      this.list.replaceChildren(...shown.map(() => {
        const row = document.createElement("li");
        for (const part of ["name", "bar", "share"]) {
          row.append(Object.assign(document.createElement("span"), { className: part }));
        }
        row.children[1].append(document.createElement("i"));
        return row;
      }));
    }
    shown.forEach(({ name, share }, n) => {
      const [label, bar, number] = this.list.children[n].children;
      label.textContent = label.title = name;
      bar.firstElementChild.style.transform = `scaleX(${share})`;
      number.textContent = probabilities ? percent(share) : "";
      this.list.children[n].classList.toggle("first", Boolean(probabilities) && name === sorted[0].name);
    });
    return sorted[0];
  }
}

/** 0.973 → 97 % */
export const percent = (share) => `${(100 * share).toFixed(share > 0.995 && share < 0.9995 ? 1 : 0)} %`;
