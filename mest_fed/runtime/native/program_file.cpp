// Programs from files: words and text, none of which is trusted (mest_program_file.h).
#include "mest_program_file.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "builder.h"
#include "guarded.h"
#include "reader.h"
#include "running.h"
#include "table.h"

namespace mest::runtime {
namespace {

constexpr char magic[9] = "MESTPROG";
constexpr int header_words = 18, checked_from = 3;
constexpr int64_t most_length = int64_t{1} << 30;  // of a file
constexpr double most_bytes = 1ll << 40, most_buffers = 1000000, most_kinds = 1000;
constexpr size_t longest_name = 800;  // 200 characters of UTF-8

uint64_t word_at(const unsigned char* at) {
    uint64_t word = 0;
    for (int i = 7; i >= 0; --i) word = word << 8 | at[i];
    return word;
}

uint64_t fnv(const unsigned char* from, const unsigned char* until) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (; from < until; ++from) hash = (hash ^ *from) * 0x100000001b3u;
    return hash;
}

std::vector<int64_t> words_of(const unsigned char* data, int64_t length) {
    if (data == nullptr || length < 8 * header_words || length > most_length || length % 8 != 0) {
        refuse("a file of " + std::to_string(length) + " bytes",
               "a multiple of 8 from " + std::to_string(8 * header_words) + " to 2**30");
    }
    if (std::memcmp(data, magic, 8) != 0) refuse("a file of another kind", magic);
    std::vector<int64_t> words(static_cast<size_t>(length / 8));
    for (size_t i = 0; i < words.size(); ++i) {
        const uint64_t word = word_at(data + 8 * i);
        std::memcpy(&words[i], &word, 8);
    }
    if (words[1] != MEST_PROGRAM_FILE_VERSION) {
        refuse("version " + std::to_string(words[1]), std::to_string(MEST_PROGRAM_FILE_VERSION));
    }
    if (static_cast<uint64_t>(words[2]) != fnv(data + 8 * checked_from, data + length)) {
        throw std::invalid_argument("the file is damaged: its check does not fit its bytes");
    }
    return words;
}

struct Header {
    int64_t kinds = 0, buffer_words = 0, operator_words = 0, reals = 0, text_bytes = 0;
};

}  // namespace
}  // namespace mest::runtime

using namespace mest::runtime;

struct mest_program_file {
    mest_program_file(const unsigned char* data, int64_t length);

    mest_description description{};
    mest_step_facts facts{};
    std::vector<mest_buffer> buffers;

private:
    Header read_header(const std::vector<int64_t>& words);
    void read_kinds(const int64_t* counts, int64_t kinds);
    void read_names(const unsigned char* text, int64_t bytes, int64_t kinds);
    void read_buffers(const int64_t* words, int64_t count);
    int64_t read_buffer(Reader<int64_t>& numbers, const std::string& where);
    void read_operators(const int64_t* words, int64_t count);
    void check_facts() const;

    std::vector<std::string> kind_names_, names_;
    std::vector<int> codes_;           // of kinds, in this library
    std::vector<int64_t> lengths_;     // words of an operator of a kind behind its code
    std::vector<int64_t> flat_, operators_;
    std::vector<double> reals_;
    std::vector<std::vector<int64_t>> shapes_;
};

mest_program_file::mest_program_file(const unsigned char* data, int64_t length) {
    const std::vector<int64_t> words = words_of(data, length);
    const Header h = read_header(words);
    const int64_t* at = words.data() + header_words;
    const int64_t* const counts = at;
    const int64_t* const of_buffers = counts + 4 * h.kinds;
    const int64_t* const of_operators = of_buffers + h.buffer_words;
    const int64_t* const of_reals = of_operators + h.operator_words;
    const int64_t text = header_words + 4 * h.kinds + h.buffer_words + h.operator_words + h.reals;
    read_names(data + 8 * text, h.text_bytes, h.kinds);
    read_kinds(counts, h.kinds);
    read_buffers(of_buffers, h.buffer_words);
    read_operators(of_operators, h.operator_words);
    reals_.resize(static_cast<size_t>(h.reals));
    if (h.reals > 0) std::memcpy(reals_.data(), of_reals, 8 * reals_.size());
    check_facts();
    description.buffers = flat_.data();
    description.buffers_length = static_cast<int64_t>(flat_.size());
    description.operators = operators_.data();
    description.operators_length = static_cast<int64_t>(operators_.size());
    description.reals = reals_.data();
    description.reals_length = h.reals;
}

Header mest_program_file::read_header(const std::vector<int64_t>& words) {
    Header h;
    Reader<int64_t> numbers(words.data() + checked_from, header_words - checked_from, "header");
    facts.arena_bytes = numbers.next("bytes of the arena", 0, most_bytes);
    description.group_operators = numbers.next("operators of a group", 0, most_buffers);
    facts.group_examples = numbers.next("examples of a group", 1, most_bytes);
    facts.takes_groups = static_cast<int>(numbers.next("several groups", 0, 1));
    for (int64_t* number :
         {&facts.input, &facts.targets, &facts.rates, &facts.share, &facts.loss}) {
        *number = numbers.next("number of a buffer", 0, most_buffers - 1);
    }
    h.kinds = numbers.next("kinds", 0, most_kinds);
    facts.buffers = numbers.next("buffers", 1, most_buffers);
    const auto most = static_cast<double>(words.size());
    h.buffer_words = numbers.next("words of buffers", 0, most);
    h.operator_words = numbers.next("words of operators", 0, most);
    h.reals = numbers.next("reals", 0, most);
    h.text_bytes = numbers.next("bytes of text", 0, 8 * most);
    const int64_t given = header_words + 4 * h.kinds + h.buffer_words + h.operator_words + h.reals;
    if (h.text_bytes % 8 != 0 || 8 * given + h.text_bytes != 8 * static_cast<int64_t>(words.size())) {
        refuse("parts of " + std::to_string(8 * given + h.text_bytes) + " bytes",
               "those of the file, " + std::to_string(8 * words.size()));
    }
    return h;
}

void mest_program_file::read_names(const unsigned char* text, int64_t bytes, int64_t kinds) {
    const auto* at = reinterpret_cast<const char*>(text);
    const char* const end = at + bytes;
    for (int64_t i = 0; i < kinds + facts.buffers; ++i) {
        const char* stop = std::find(at, end, '\0');
        const auto length = static_cast<size_t>(stop - at);
        if (stop == end || length == 0 || length > longest_name) {
            refuse("a name of " + std::to_string(length) + " bytes",
                   "1 to " + std::to_string(longest_name) + ", and a zero");
        }
        (i < kinds ? kind_names_ : names_).emplace_back(at, length);
        at = stop + 1;
    }
    std::vector<std::string> sorted = names_;
    std::sort(sorted.begin(), sorted.end());
    if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) {
        throw std::invalid_argument("two buffers have one name");
    }
}

void mest_program_file::read_kinds(const int64_t* counts, int64_t kinds) {
    const auto& all = table();
    for (int64_t kind = 0; kind < kinds; ++kind, counts += 4) {
        const std::string& name = kind_names_[static_cast<size_t>(kind)];
        const auto found = std::find_if(all.begin(), all.end(),
                                        [&](const Operator& each) { return name == each.name; });
        if (found == all.end()) throw std::invalid_argument("no operator " + name + " in this library");
        int64_t wholes = 0, reals = 0;
        for (const Attribute& each : found->wholes) wholes += each.length;
        for (const Attribute& each : found->reals) reals += each.length;
        const int64_t mine[] = {static_cast<int64_t>(found->inputs.size()),
                                static_cast<int64_t>(found->outputs.size()), wholes, reals};
        if (!std::equal(mine, mine + 4, counts)) {
            throw std::invalid_argument("the operator " + name + " is another in this library");
        }
        codes_.push_back(static_cast<int>(found - all.begin()));
        lengths_.push_back(mine[0] + mine[1] + wholes);
    }
}

void mest_program_file::read_buffers(const int64_t* words, int64_t count) {
    Reader<int64_t> numbers(words, count, "buffers");
    int64_t end = 0;
    for (int64_t i = 0; i < facts.buffers; ++i) {
        end = std::max(end, read_buffer(numbers, "buffers[" + std::to_string(i) + "]"));
    }
    if (!numbers.ended()) refuse("more words of buffers", std::to_string(facts.buffers) + " buffers");
    if (facts.arena_bytes % 64 != 0 || facts.arena_bytes - end < 0 || facts.arena_bytes - end >= 64) {
        refuse("an arena of " + std::to_string(facts.arena_bytes) + " bytes",
               "what its buffers take, in whole lines of 64: " + std::to_string(end));
    }
    for (size_t i = 0; i < buffers.size(); ++i) {  // now that nothing moves any more
        buffers[i].name = names_[i].c_str();
        buffers[i].shape = shapes_[i].data();
    }
}

// Returns where it ends in the arena; 0 elsewhere.
int64_t mest_program_file::read_buffer(Reader<int64_t>& numbers, const std::string& where) {
    constexpr Role roles_of[] = {rows, alike, alike, alike, rows, sum, alike};
    Buffer b{};
    b.type = static_cast<Type>(numbers.next(where + ".type", 0, types - 1));
    const auto use = static_cast<int>(numbers.next(where + ".use", 0, mest_temporary));
    b.role = roles_of[use];
    b.offset = numbers.next(where + ".offset", -1, most_bytes);
    b.margin = static_cast<int>(numbers.next(where + ".margin", 0, 64));
    const int64_t dims = numbers.next(where + ".dimensions", 0, 8);
    double size = bytes_of(b.type);
    for (int64_t i = 0; i < dims; ++i) {
        b.shape.push_back(numbers.next(where + ".shape", 1, most_bytes));
        size *= static_cast<double>(b.shape.back());
    }
    if (size > most_bytes) refuse(where + " is too large", "at most 2**40 bytes");
    const bool is_plane = dims == 4 && (b.type == float32 || b.type == bfloat16);
    const bool is_small = std::all_of(b.shape.begin(), b.shape.end(),
                                      [](int64_t each) { return each < int64_t{1} << 31; });
    if (b.margin > 0 && !(use == mest_temporary && is_plane && is_small)) {
        refuse(where + ".margin = " + std::to_string(b.margin), "0 but for planes in the arena");
    }
    if (use != mest_temporary && b.offset >= 0) {
        refuse(where + ".offset", "-1: only temporary buffers lie in the arena");
    }
    const bool by_examples = b.role == rows;
    if (by_examples && (dims == 0 || b.shape[0] != facts.group_examples)) {
        refuse(where + " of other examples", std::to_string(facts.group_examples) + " of a group");
    }
    for (int64_t number : {int64_t{b.type}, int64_t{b.role}, b.offset, int64_t{b.margin}, dims}) {
        flat_.push_back(number);
    }
    flat_.insert(flat_.end(), b.shape.begin(), b.shape.end());
    shapes_.push_back(b.shape);
    const int64_t bytes = b.bytes();
    buffers.push_back({nullptr, b.type, use, static_cast<int>(dims), nullptr, b.count(), bytes});
    return b.offset < 0 ? 0 : b.offset + bytes;
}

void mest_program_file::read_operators(const int64_t* words, int64_t count) {
    Reader<int64_t> numbers(words, count, "operators");
    const double least = -9.3e18, most = 9.3e18;  // mest_create knows better
    while (!numbers.ended()) {
        const int64_t kind = numbers.next("kind of an operator", 0, static_cast<double>(codes_.size()) - 1);
        operators_.push_back(codes_[static_cast<size_t>(kind)]);
        for (int64_t i = 0; i < lengths_[static_cast<size_t>(kind)]; ++i) {
            operators_.push_back(numbers.next("a number of an operator", least, most));
        }
    }
}

void mest_program_file::check_facts() const {
    const auto at = [&](int64_t number, const char* what, int use) {
        if (number >= facts.buffers || buffers[static_cast<size_t>(number)].use != use) {
            refuse(std::string(what) + " = buffers[" + std::to_string(number) + "]",
                   "a buffer of that use");
        }
        return buffers[static_cast<size_t>(number)];
    };
    at(facts.input, "input", mest_input);
    at(facts.targets, "targets", mest_input);
    const mest_buffer loss = at(facts.loss, "loss", mest_total);
    for (const mest_buffer& each : {at(facts.rates, "rates", mest_setting),
                                    at(facts.share, "share", mest_setting), loss}) {
        if (each.type != float32) refuse(each.name, "of float32");
    }
    if (loss.values != 1 || facts.input == facts.targets) refuse("loss or input", "one number; two buffers");
}

int mest_program_file_read(const void* data, int64_t length, mest_program_file** made, char* error,
                           size_t error_size) {
    return guarded(error, error_size, [&] {
        if (made == nullptr) refuse("made = null", "an address");
        *made = nullptr;
        *made = new mest_program_file(static_cast<const unsigned char*>(data), length);
    });
}

const mest_description* mest_program_file_description(const mest_program_file* file) {
    return file == nullptr ? nullptr : &file->description;
}

const mest_step_facts* mest_program_file_facts(const mest_program_file* file) {
    return file == nullptr ? nullptr : &file->facts;
}

int mest_program_file_buffer(const mest_program_file* file, int64_t number, mest_buffer* found) {
    if (file == nullptr || found == nullptr || number < 0 || number >= file->facts.buffers) return 0;
    *found = file->buffers[static_cast<size_t>(number)];
    return 1;
}

void mest_program_file_close(mest_program_file* file) { delete file; }
