// Emphasis for people: only on a terminal, and never where NO_COLOR is set (https://no-color.org).

export interface Style {
  bold(text: string): string
  /** What went wrong, or is about to be lost. */
  danger(text: string): string
}

/** @param stream where the text will go */
export function styleOf(stream: NodeJS.WriteStream): Style {
  const on = stream.isTTY === true && !process.env.NO_COLOR && process.env.TERM !== 'dumb'
  const paint =
    (code: number) =>
    (text: string): string =>
      on ? `\x1b[${code}m${text}\x1b[0m` : text
  return { bold: paint(1), danger: paint(31) }
}
