/* operations.h - all that a program can say: its enumerations, its tables and the fields of every
 * operation, each written once.
 *
 * program.c makes from these lists the structs, what reads them from a program's words, and the text
 * that fl_vocabulary() gives, with which Python compares its own when it is imported.
 *
 * A program is a list of 64-bit little-endian words; program.c has their order. A *value* is one row
 * of numbers a step. Values that have as many rows lie on one *line*; line 0 is that of the inputs.
 * A *held* value has one row for a whole sequence, and lies in the state; a constant is a vector.
 * Operations run in their order, over all rows that a chunk of steps gives, batch row by batch row
 * on its own: nothing an operation does depends on how many steps a chunk has.
 *
 * An operation keeps the line of what it reads, unless it makes another number of rows: a window
 * (but one of stride 1 with before = reach + ahead and nothing behind, which gives a row for each that
 * it reads), spread, a folded fold or attention, and meet. Two of these may make the same line, if
 * they read one line and make as many rows of it.
 *
 * Numbers of several values that an operation reads at once are counted on: those of the second
 * stand behind those of the first. A *place* is such a number's, from 0, or -1 for none.
 */
#ifndef FL_OPERATIONS_H
#define FL_OPERATIONS_H

/* Functions: of one number, with their parameters alpha and beta; then of two; then of three. A
 * comparison is 1 where it holds, else 0; "where" is its second number where the first is not 0,
 * else its third. spec/functions.py and spec/arithmetic.py have the same names. */
#define FL_FUNCTIONS(E)                                                                            \
    E(identity) E(relu) E(tanh) E(sigmoid) E(softsign) E(softplus) E(silu) E(gelu) E(gelu_tanh)    \
    E(affine) E(elu) E(leaky_relu) E(thresholded_relu) E(hard_sigmoid) E(scaled_tanh) E(clip)      \
    E(abs) E(sign) E(floor) E(sqrt) E(square) E(reciprocal) E(exp) E(log) E(sin) E(cos)            \
    E(add) E(subtract) E(multiply) E(divide) E(power) E(minimum) E(maximum)                        \
    E(equal) E(not_equal) E(less) E(less_equal) E(greater) E(greater_equal)                        \
    E(where)

#define FL_REDUCTIONS(E) E(sum) E(mean) E(max) E(min) E(l2)
#define FL_FOLDS(E) E(first) E(last) E(sum) E(mean) E(max) E(min)
#define FL_NORMS(E) E(layer) E(rms)
#define FL_CELLS(E) E(lstm) E(gru) E(rnn)
#define FL_CELL_NORMS(E) E(none) E(product) E(gate) /* spec.LSTM's layer_norm */

/* Where the rows of a value are. `number` is: of an input, of an output, of a buffer, the element of
 * the state at which the row of a held value lies, or the number of a vector; or that of a value, of
 * whose rows it is a stretch. */
#define FL_PLACES(E) E(input) E(output) E(buffer) E(state) E(vector) E(stretch)

/* What a part of the state is to those who read and write it by name: rows of numbers as they are; a
 * ring of rows, read oldest first, of which the oldest is number `position`, itself an element of the
 * state; or a count, an integer whose digits to the base 2^24 are the rows, the lowest first. What
 * belongs to no part, only those see who copy all of a state. */
#define FL_PARTS(E) E(plain) E(ring) E(count)

/* How the numbers of a tensor, or of the panels of a matrix, are stored: as the reals of the model;
 * as half of a float's bits, of which products of floats are made; or as integers from -127 to 127,
 * which meet rows of such integers. Products of int8 are made so, of a row x of floats: m is the
 * largest |x|; where it is infinite or NaN, all products are NaN; where it is below 2^-100, the
 * integers of x are 0; else they are x * (127 / m), rounded half to even. A sum of products is counted
 * in integers, becomes a float, and is scaled by (m / 127) * the scale of its output. */
#define FL_STORED(E) E(real) E(float16) E(bfloat16) E(int8)

/* Types of fields:
 *   value     number of a value             some_value   or -1
 *   vector    number of a vector, or -1     matrix       number of a matrix, or -1
 *   list      number of a list, or -1       offset       element of a stream's state, or -1
 *   size      0 to 2^31 - 1                 integer      -2^31 to 2^31 - 1
 *   number    the bits of a double          flag         0 or 1
 *   function  three words: a function of one number, and the bits of alpha and beta
 *   reduction, fold, norm, cell, cell_norm, place, part, stored: those of the lists above
 */

/* ---- Tables. Each begins with how many entries it has. ---- */

/* A tensor of so many numbers that lies beside the program; real: of floats or doubles. */
#define FL_TENSOR_FIELDS(F) F(size, count) F(stored, stored)

/* `count` numbers of a tensor from `first` on, or where tensor is -1 of the program's own reals. */
#define FL_VECTOR_FIELDS(F) F(integer, tensor) F(size, first) F(size, count)

/* A matrix is the sum of its pieces, which do not overlap; what none covers is 0. Row r is what they
 * say times scale[r] (rows,), where there is a scale; of int8 there is. stored: as what panels have
 * it, and tables of tokens to look up. */
#define FL_MATRIX_FIELDS(F)                                                                        \
    F(size, rows) F(size, columns) F(size, first_piece) F(size, pieces) F(stored, stored)          \
    F(vector, scale)

/* Row r and column c of a piece, counted from its first: number first + r * row_stride + order[c] of
 * a tensor (-1: of the program's reals), with c * column_stride instead where order is -1. A -1
 * within order is a column of zeros. Its place in the matrix begins at (row, column). */
#define FL_PIECE_FIELDS(F)                                                                         \
    F(size, row) F(size, rows) F(size, column) F(size, columns)                                    \
    F(integer, tensor) F(size, first) F(integer, row_stride) F(integer, column_stride)             \
    F(list, order)

/* line is -1 for held values and constants. tokens: integers below it, of an input; else 0. first: of
 * a stretch the number of its value's row that it begins with; else 0. No operation writes a stretch,
 * whose value is none itself, is on the same line and no tokens. */
#define FL_VALUE_FIELDS(F)                                                                         \
    F(size, count) F(integer, line) F(place, place) F(size, number) F(size, tokens) F(size, first)

/* `rows` rows of `count` numbers; order, if it is not -1, is (count,): the number of a row as it
 * lies in the state that stands at each place of the row as it is read and written by name. */
#define FL_PART_FIELDS(F)                                                                          \
    F(part, part) F(offset, offset) F(size, rows) F(size, count) F(offset, position) F(list, order)

/* A new stream's state is 0 but for these. */
#define FL_INITIAL_FIELDS(F) F(offset, offset) F(vector, values)

#define FL_TABLES(T)                                                                               \
    T(TENSOR, tensor) T(VECTOR, vector) T(MATRIX, matrix) T(PIECE, piece) T(VALUE, value)          \
    T(PART, part) T(INITIAL, initial)

/* ---- Operations on rows: each row of y is made of the same row of what is read. ---- */

/* y[i] is the number at a place, or fill; of a token the number that it is. runs: (start, stride,
 * count) of places, as spec.Index. */
#define FL_MOVE_FIELDS(F) F(list, reads) F(value, y) F(list, runs) F(number, fill)

/* Functions of numbers, number by number. y has the axes `shape` (n,); what is read strides over
 * them by `strides` (reads, n), in numbers, the last of each 0 or 1, from its number `begins` (reads,)
 * on; where begins is -1, from the first. code (m, 6): a function, up to three registers it reads,
 * the bits of alpha and beta. Register i below the number of reads is what is read; the others are
 * what the code before gave. The last one's is y. */
#define FL_MAP_FIELDS(F)                                                                           \
    F(list, reads) F(value, y) F(list, shape) F(list, strides) F(list, code) F(list, begins)

/* y (positions, groups, outputs) = function(scale (bias + W_g x) + shift). x of a position and group
 * are columns / piece runs of `piece` numbers, each beginning at the next of `places` (positions,
 * groups, columns / piece); -1 is zeros. Where places is -1 there is one group, and the numbers of
 * one position follow those of the last. bias, scale, shift (groups * outputs,); scale and shift are
 * both there or neither. */
#define FL_PRODUCT_FIELDS(F)                                                              \
    F(list, reads) F(value, y) F(list, matrices) F(vector, bias) F(vector, scale)                  \
    F(vector, shift) F(function, function) F(size, positions) F(size, piece) F(list, places)

/* y (positions, C) = function(scale (bias + sum over taps k of weight[k] x[k]) + shift), channel by
 * channel: a convolution with as many groups as channels. weight (taps, C); each x[k] is C numbers
 * that begin at the next of places (positions, taps). */
#define FL_TAPS_FIELDS(F)                                                                          \
    F(list, reads) F(value, y) F(matrix, weight) F(vector, bias) F(vector, scale)                  \
    F(vector, shift) F(function, function) F(size, positions) F(list, places)

/* Matrices a (n, k) times b (k, p), one behind the other in y. places: where each a and each b
 * begins in its value, (products, 2). */
#define FL_MATMUL_FIELDS(F)                                                                        \
    F(value, a) F(value, b) F(value, y) F(size, n) F(size, k) F(size, p) F(list, places)

/* x (outer, n, inner) -> y (outer, inner). */
#define FL_REDUCE_FIELDS(F)                                                                        \
    F(value, x) F(value, y) F(reduction, reduction) F(size, outer) F(size, n) F(size, inner)

/* x (outer, n, inner) -> y likewise, over n. */
#define FL_SOFTMAX_FIELDS(F)                                                                       \
    F(value, x) F(value, y) F(flag, log) F(size, outer) F(size, n) F(size, inner)

/* x (outer, n) -> y likewise: each row of n numbers normalised, then weight and bias, if they are
 * there, each (n,) or (outer * n,). */
#define FL_NORM_FIELDS(F)                                                                          \
    F(value, x) F(value, y) F(norm, norm) F(size, outer) F(size, n) F(number, eps)                 \
    F(vector, weight) F(vector, bias)

/* y: for each place the row of `table` (V, width) of the token there, one behind the other. A token
 * outside [0, V) is taken for 0. */
#define FL_LOOKUP_FIELDS(F) F(value, x) F(value, y) F(matrix, table) F(list, places)

/* y: for each place `classes` numbers, 1 at the token there, else 0. */
#define FL_ONE_HOT_FIELDS(F) F(value, x) F(value, y) F(size, classes) F(list, places)

/* ---- Operations over time. ---- */

/* Row j of y is rows j * stride - before + k * dilation of x, k in [0, size), one behind the other;
 * fill stands for those before the first, and behind the last. With reach = dilation * (size - 1),
 * after n rows, unless n is 0, a stream has given max(0, (n - ahead + before - reach - 1 + stride) /
 * stride) of them, rounded down, and at its end, unless n is 0, as many as of n + behind. before may be negative, and
 * so may behind: of the rows that x itself has only at the end, the last ones are then left out. The
 * last reach + ahead rows are kept in a ring (as many, count of x), if there are any; its oldest row
 * is number `position`. rows counts those that were read, as far as anything depends on it: -1 where
 * nothing does, as every row read gives one from the first on. */
#define FL_WINDOW_FIELDS(F)                                                                        \
    F(value, x) F(value, y) F(size, size) F(size, stride) F(size, dilation) F(integer, before)     \
    F(size, ahead) F(integer, behind) F(number, fill) F(offset, ring) F(offset, position)             \
    F(offset, rows)

/* y[t] = x[t - steps], by a ring (steps, count), whose oldest row is number `position`. */
#define FL_DELAY_FIELDS(F)                                                                         \
    F(value, x) F(value, y) F(size, steps) F(offset, ring) F(offset, position)

/* The two halves of a delay, on a loop: what it gives, and, later, what it takes. */
#define FL_RECALL_FIELDS(F) F(value, y) F(size, steps) F(offset, ring) F(offset, position)
#define FL_REMEMBER_FIELDS(F) F(value, x) F(size, steps) F(offset, ring) F(offset, position)

/* Each row of x is `times` rows of y, the i-th of them the numbers from i * stride on. */
#define FL_SPREAD_FIELDS(F) F(value, x) F(value, y) F(size, times) F(size, stride)

/* All rows so far, number by number. folded: a whole sequence has one row of y, which is due at its
 * end if there was any row; else, and in a stream always, there is one for each row of x. total
 * (count,), of a mean the mean, and rest (count,) what rounding took from that; rows (2,) counts
 * them, in digits to the base 2^24. */
#define FL_FOLD_FIELDS(F)                                                                          \
    F(value, x) F(value, y) F(fold, fold) F(flag, folded) F(offset, total) F(offset, rest)         \
    F(offset, rows)

/* Of the rows so far, the sum of softmax(scores over time) * values. score_of (count of y,) is the
 * score of each number of y, value_of (count of y,) its value; -1: number i has number i. largest
 * and weight (count of scores,), total (count of y,): spec.Attention. rows (2,) counts them. */
#define FL_ATTENTION_FIELDS(F)                                                                     \
    F(value, scores) F(value, values) F(value, y) F(flag, folded) F(list, score_of)                \
    F(list, value_of) F(offset, largest) F(offset, weight) F(offset, total) F(offset, rows)

/* Rows of the same index of several values. The ys have a row when all of the reads have: those of
 * the others wait in queues (capacity, count) of the state; heads (reads, 2): the number of the
 * oldest row of a queue, and how many wait. Where a capacity is 0 no row ever waits. capacities and
 * queues (reads,). */
#define FL_MEET_FIELDS(F)                                                                          \
    F(list, reads) F(list, ys) F(list, capacities) F(list, queues) F(offset, heads)

/* The next `operations` run row by row: all of them for one row, then all for the next. Those among
 * them are recall, remember, recurrent along time that is not reverse, window, fold and attention that
 * keep the line, and operations on rows. */
#define FL_LOOP_FIELDS(F) F(size, operations)

/* Put the row of a held value into the state. */
#define FL_START_FIELDS(F) F(value, x) F(offset, offset)

/* One layer and direction of a recurrent stack, with all that spec.recurrent says. x (positions,
 * steps, input_size) and y (positions, steps, width), of which this writes h from h_column on and,
 * where c_column is not -1, c from there on. Where along_positions is 0, steps is 1 and the row of
 * each position is the next step of a state of its own: h (positions, h_size), c (positions,
 * hidden_size), held (positions, h_size) the last output where there is a mask. Else it runs along
 * `steps`, anew in each row, from h_0 (h_size,) and c_0 (hidden_size,), or from the values start_h
 * (positions, h_size) and start_c, or from zeros. mask (positions, steps) or one number.
 * reverse: from the last row or step to the first.
 *
 * Matrices are in PyTorch's order of gates, i f g o (i g o where coupled), r z n: input (G *
 * hidden_size, input_size), hidden (G * hidden_size, h_size), projection (h_size, hidden_size). Where
 * x is tokens, table (V, width) makes the input's row of each of them, or, where table is -1, a
 * token stands for a column of `input`.
 * z = (bias + products of x) + (products of h), each product summed in blocks. bias is (G *
 * hidden_size,); h_bias, of a GRU, (hidden_size,) what the product of h starts from in gate n.
 * functions: of gates, candidate, c (lstm); of gates, candidate (gru); or the one of an rnn. clip
 * and cell_clip: 0 for none. peepholes (gates but g, hidden_size). norm: of the products, weights
 * and biases x, h (G * hidden_size,) and c (hidden_size,); of gates, norm_x_weight alone. With a
 * norm, bias is added behind it. */
#define FL_RECURRENT_FIELDS(F)                                                                     \
    F(cell, cell) F(value, x) F(value, y) F(some_value, mask) F(some_value, start_h)               \
    F(some_value, start_c) F(size, input_size) F(size, hidden_size) F(size, h_size)                \
    F(size, positions) F(size, steps) F(size, width) F(size, h_column) F(integer, c_column)        \
    F(flag, along_positions) F(flag, reverse) F(offset, h) F(offset, c) F(offset, held)            \
    F(vector, h_0) F(vector, c_0) F(matrix, input) F(matrix, hidden) F(matrix, projection)         \
    F(matrix, table) F(vector, bias) F(vector, h_bias) F(function, function_0)                     \
    F(function, function_1) F(function, function_2) F(number, clip) F(number, cell_clip)           \
    F(flag, coupled) F(flag, reset_after) F(vector, peepholes) F(cell_norm, norm) F(number, eps)   \
    F(vector, norm_x_weight) F(vector, norm_x_bias) F(vector, norm_h_weight)                       \
    F(vector, norm_h_bias) F(vector, norm_c_weight) F(vector, norm_c_bias)

/* Name of the list of fields, of the operation. */
#define FL_OPERATIONS(O)                                                                           \
    O(MOVE, move) O(MAP, map) O(PRODUCT, product) O(TAPS, taps) O(MATMUL, matmul)         \
    O(REDUCE, reduce) O(SOFTMAX, softmax) O(NORM, norm) O(LOOKUP, lookup) O(ONE_HOT, one_hot)      \
    O(WINDOW, window) O(DELAY, delay) O(RECALL, recall) O(REMEMBER, remember) O(SPREAD, spread)    \
    O(FOLD, fold) O(ATTENTION, attention) O(MEET, meet) O(LOOP, loop) O(START, start)              \
    O(RECURRENT, recurrent)

#endif
